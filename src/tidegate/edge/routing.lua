-- Finds the model that a request is for, and names its cluster in a header.
--
-- gRPC: the name lies inside the message, so the listed unary methods are buffered and the
-- protobuf wire format is walked to it (https://protobuf.dev/programming-guides/encoding/).
-- REST: the name lies in the path. A body of some size is awaited, not read: an error that is
-- answered while an HTTP/1.1 client still writes closes its connection, and most clients then
-- report the closing and not the answer. One beyond the limit flows through to the replica, which
-- counts and drops it and answers when it has ended.
-- The tables between the marks are generated from tidegate.protocols; see routing_script.py.

--@tables

local MAX_FIELDS = 16384 -- of one message: two-byte fields could keep a thread busy for seconds
local WINDOW = 512       -- bytes read at a time
local AWAITED = 65536    -- a smaller body is on its way to Envoy as a whole

local byte, char, find, format = string.byte, string.char, string.find, string.format
local gsub, lower, match, sub = string.gsub, string.lower, string.match, string.sub

local INVALID, NOT_FOUND, TOO_LARGE, UNSUPPORTED = -- {HTTP status, gRPC code}
  STATUS.invalid, STATUS.not_found, STATUS.too_large, STATUS.unsupported

local function fail(handle, status, message, headers)
  headers = headers or {}
  headers[":status"] = status[1]
  if sub(handle:headers():get("content-type") or "", 1, 16) == "application/grpc" then
    headers["grpc-status"] = status[2]
  end
  handle:respond(headers, message)
end

-- What a caller sent, made fit for a message: short and printable.
local function shown(text)
  text = gsub(text, "[^ -~]", "?")
  if #text > 64 then text = sub(text, 1, 64) .. "..." end
  return text
end

local function name_error(name)
  if #name <= NAME_LENGTH and find(name, NAME) then return nil end
  return format("'%s' cannot be the name of a model: use letters, digits, '.', '_' and '-', "
    .. "at most %d of them, a letter or digit first", shown(name), NAME_LENGTH)
end

local function version_error(version)
  if #version <= VERSION_LENGTH and find(version, VERSION) then return nil end
  return format("'%s' is not a version: it is a positive whole number, as 2", shown(version))
end

local function route(handle, cluster, target)
  local headers = handle:headers() -- after body() has yielded, an older object is dead
  headers:replace(CLUSTER_HEADER, cluster)
  headers:replace(TARGET_HEADER, target)
  handle:clearRouteCache()
end

-- Sends the request to a model, or answers what is wrong with its name.
local function route_to_model(handle, model, version)
  local wrong = name_error(model) or (version and version_error(version))
  if wrong then return fail(handle, INVALID, wrong) end
  if version then
    route(handle, MODEL_PREFIX .. model .. ":" .. version,
      "version " .. version .. " of model '" .. model .. "'")
  else
    route(handle, MODEL_PREFIX .. model, "model '" .. model .. "'")
  end
end

-- Returns a function from a position (from 0) to a byte; payloads are skipped, never copied.
local function reader(body, size)
  local window, first, last = "", 0, 0
  return function(at)
    if at < first or at >= last then
      if at >= size then return nil end
      first, last = at, at + WINDOW
      if last > size then last = size end
      window = body:getBytes(first, last - first)
    end
    return byte(window, at - first + 1)
  end
end

local function varint(read, at)
  local value, scale = 0, 1
  for _ = 1, 10 do
    local b = read(at)
    if not b then return nil, at end
    at = at + 1
    if b < 128 then return value + b * scale, at end
    value, scale = value + (b - 128) * scale, scale * 128
  end
  return nil, at
end

-- Walks the fields from `at` to `stop`. `tree` maps field numbers to "model" or "version", or to
-- the tree of a message. The last occurrence wins, and messages that come twice are merged.
local function walk(read, at, stop, tree, found)
  while at < stop do
    found.fields = found.fields + 1
    if found.fields > MAX_FIELDS then return "it has too many fields" end
    local tag, size, _
    tag, at = varint(read, at)
    if not tag or tag < 8 or tag > 4294967295 then return "a field's tag is malformed" end
    local wire = tag % 8
    if wire == 2 then
      size, at = varint(read, at)
      if not size or at + size > stop then return "a field is longer than the message" end
      local node = tree[(tag - 2) / 8]
      if type(node) == "table" then
        local wrong = walk(read, at, at + size, node, found)
        if wrong then return wrong end
      elseif node then
        found[node], found[node .. "_size"] = at, size
      end
      at = at + size
    elseif wire == 0 then
      _, at = varint(read, at)
      if not _ then return "a number is malformed" end
    elseif wire == 1 then
      at = at + 8
    elseif wire == 5 then
      at = at + 4
    else
      return "a field's type is malformed"
    end
  end
  if at > stop then return "a field is longer than the message" end
  return nil
end

-- A string that was found, cut to what a valid one may have and one byte more.
local function text(body, found, slot, longest)
  local size = found[slot .. "_size"] or 0
  if size == 0 then return nil end
  if size > longest then size = longest + 1 end
  return body:getBytes(found[slot], size)
end

-- A compressed message cannot be read here: headers may name the model instead.
local function by_header(handle)
  local headers = handle:headers()
  local model = headers:get(MODEL_HEADER)
  if model then return route_to_model(handle, model, headers:get(VERSION_HEADER)) end
  fail(handle, UNSUPPORTED, "the message is compressed, so its model cannot be read: send it "
    .. "without compression, or name the model in the header " .. MODEL_HEADER,
    {["grpc-accept-encoding"] = "identity"})
end

local function by_message(handle, tree)
  local body = handle:body(true)
  local size = body:length()
  if size < 5 then
    return fail(handle, INVALID, format("the gRPC frame is truncated: it has %d bytes, and its "
      .. "head alone has 5", size))
  end
  local a, b, c, d, e = byte(body:getBytes(0, 5), 1, 5)
  local length = ((b * 256 + c) * 256 + d) * 256 + e
  if length ~= size - 5 then
    return fail(handle, INVALID, format("the gRPC frame is truncated or followed by another: it "
      .. "announces %d bytes, and %d came", length, size - 5))
  end
  if length > LIMIT then
    return fail(handle, TOO_LARGE, "too large") -- the words come from local_replies.py
  end
  if a == 1 then return by_header(handle) end
  if a ~= 0 then return fail(handle, INVALID, "the gRPC frame's flag is not 0 or 1") end
  local found = {fields = 0}
  local wrong = walk(reader(body, size), 5, size, tree, found)
  if wrong then
    return fail(handle, INVALID, "the message is not the protobuf message of this method: " .. wrong)
  end
  local model = text(body, found, "model", NAME_LENGTH)
  if not model then return fail(handle, INVALID, "the message has no model name") end
  route_to_model(handle, model, text(body, found, "version", VERSION_LENGTH))
end

local function unescaped(segment)
  return (gsub(segment, "%%(%x%x)", function(code) return char(tonumber(code, 16)) end))
end

local function by_path(handle, path)
  local query = find(path, "?", 1, true)
  local tail = query and sub(path, query) or ""
  if query then path = sub(path, 1, query - 1) end
  for _, prefix in ipairs(PREFIXES) do
    if sub(path, 1, #prefix) == prefix then
      local name, rest = match(path, "^([^/]*)(.*)$", #prefix + 1)
      if name == "" then return end
      local model, version = unescaped(name), nil
      local number, verb = match(rest, "^/versions/([^/]*)(.*)$")
      if number then
        version = unescaped(number)
        rest = "/versions/" .. version .. verb
      end
      local canonical = prefix .. model .. rest
      if canonical ~= path and not name_error(model)
        and not (version and version_error(version)) then
        handle:headers():replace(":path", canonical .. tail)
      end
      return route_to_model(handle, model, version)
    end
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove(CLUSTER_HEADER)
  headers:remove(TARGET_HEADER)
  local path = headers:get(":path") or ""
  if sub(headers:get("content-type") or "", 1, 16) ~= "application/grpc" then
    local length = tonumber(headers:get("content-length") or "") or 0
    if length > AWAITED and length <= LIMIT then handle:body() end
    return by_path(handle, path)
  end
  -- The path is looked up before the body is awaited: a stream of another method has no end.
  local tree = METHODS[path]
  if tree then return by_message(handle, tree) end
  if SERVER_METHODS[path] then return route(handle, CONTROLLER_CLUSTER, "the controller") end
end
