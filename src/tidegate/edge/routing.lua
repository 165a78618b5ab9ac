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
local FIELD_HEAD = 20    -- bytes; a tag and a length have 10 each at most
local MOST_KNOWN = 1024  -- clusters
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
  handle:headers():replace(REFUSED_HEADER, "1")
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

local function route(handle, cluster)
  -- After body() has yielded, an older headers object is dead.
  handle:headers():replace(CLUSTER_HEADER, cluster)
  handle:clearRouteCache()
end

-- The clusters of names that were found valid; the same few come all the time.
local known, count = {}, 0

-- Sends the request to a model, or answers what is wrong with its name.
local function route_to_model(handle, model, version)
  local key = version and model .. ":" .. version or model
  local cluster = known[key]
  if not cluster then
    local wrong = name_error(model) or (version and version_error(version))
    if wrong then return fail(handle, INVALID, wrong) end
    if count >= MOST_KNOWN then known, count = {}, 0 end
    cluster = MODEL_PREFIX .. key
    known[key], count = cluster, count + 1
  end
  route(handle, cluster)
end

-- A view of the body in which the head of the field at `at` (from 0) lies as a whole, unless the
-- body ends before. Payloads are skipped, never copied.
local function look(view, at)
  if at >= view.first and (at + FIELD_HEAD <= view.last or view.last == view.size) then return end
  view.first, view.last = at, at + WINDOW
  if view.last > view.size then view.last = view.size end
  view.bytes = view.body:getBytes(at, view.last - at)
end

local function varint(bytes, i)
  local b = byte(bytes, i)
  if not b or b < 128 then return b, i + 1 end
  local value, scale = b - 128, 128
  for j = i + 1, i + 9 do
    b = byte(bytes, j)
    if not b then return nil, j end
    if b < 128 then return value + b * scale, j + 1 end
    value, scale = value + (b - 128) * scale, scale * 128
  end
  return nil, i
end

-- Walks the fields from `at` to `stop`. `tree` maps field numbers to "model" or "version", or to
-- the tree of a message. The last occurrence wins, and messages that come twice are merged.
local function walk(view, at, stop, tree)
  while at < stop do
    view.fields = view.fields + 1
    if view.fields > MAX_FIELDS then return "it has too many fields" end
    look(view, at)
    local bytes, first = view.bytes, view.first - 1
    local tag, i = varint(bytes, at - first)
    if not tag or tag < 8 or tag > 4294967295 then return "a field's tag is malformed" end
    local wire = tag % 8
    if wire == 2 then
      local size
      size, i = varint(bytes, i)
      at = first + i
      if not size or at + size > stop then return "a field is longer than the message" end
      local node = tree[(tag - 2) / 8]
      if type(node) == "table" then
        local wrong = walk(view, at, at + size, node)
        if wrong then return wrong end
      elseif node == "model" then
        view.model, view.model_size = at, size
      elseif node then
        view.version, view.version_size = at, size
      end
      at = at + size
    elseif wire == 0 then
      local number
      number, i = varint(bytes, i)
      if not number then return "a number is malformed" end
      at = first + i
    elseif wire == 1 then
      at = first + i + 8
    elseif wire == 5 then
      at = first + i + 4
    else
      return "a field's type is malformed"
    end
  end
  if at > stop then return "a field is longer than the message" end
  return nil
end

-- A string that was found, cut to what a valid one may have and one byte more.
local function text(view, at, size, longest)
  if not size or size == 0 then return nil end
  if size > longest then size = longest + 1 end
  if at >= view.first and at + size <= view.last then
    return sub(view.bytes, at - view.first + 1, at - view.first + size)
  end
  return view.body:getBytes(at, size)
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
  local view = {body = body, size = size, first = 0, last = 0, fields = 0}
  look(view, 0)
  local a, b, c, d, e = byte(view.bytes, 1, 5)
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
  local wrong = walk(view, 5, size, tree)
  if wrong then
    return fail(handle, INVALID, "the message is not the protobuf message of this method: " .. wrong)
  end
  local model = text(view, view.model, view.model_size, NAME_LENGTH)
  if not model then return fail(handle, INVALID, "the message has no model name") end
  route_to_model(handle, model, text(view, view.version, view.version_size, VERSION_LENGTH))
end

local function unescaped(segment)
  return (gsub(segment, "%%(%x%x)", function(code) return char(tonumber(code, 16)) end))
end

-- Says whether the controller answers the path.
local function is_server_path(path)
  if SERVER_PATHS[path] then return true end
  for _, prefix in ipairs(SERVER_PREFIXES) do
    if sub(path, 1, #prefix) == prefix then return true end
  end
  return false
end

-- Says whether the path is one of the server's or of a model's.
local function by_path(handle, path)
  local query = find(path, "?", 1, true)
  local tail = query and sub(path, query) or ""
  if query then path = sub(path, 1, query - 1) end
  if is_server_path(path) then
    route(handle, CONTROLLER_CLUSTER)
    return true
  end
  for _, prefix in ipairs(PREFIXES) do
    if sub(path, 1, #prefix) == prefix then
      local name, rest = match(path, "^([^/]*)(.*)$", #prefix + 1)
      if name == "" then return false end
      local model, version = unescaped(name), nil
      local number, verb = match(rest, "^/versions/([^/]*)(.*)$")
      if SERVER_VERBS[verb or rest] then
        route(handle, CONTROLLER_CLUSTER)
        return true
      end
      if number then
        version = unescaped(number)
        rest = "/versions/" .. version .. verb
      end
      local canonical = prefix .. model .. rest
      if canonical ~= path and not name_error(model)
        and not (version and version_error(version)) then
        handle:headers():replace(":path", canonical .. tail)
      end
      route_to_model(handle, model, version)
      return true
    end
  end
  return false
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or ""
  local kind = headers:get("content-type") or ""
  if kind == "application/grpc" or sub(kind, 1, 16) == "application/grpc" then
    -- The path is looked up before the body is awaited: a stream of another method has no end.
    local tree = METHODS[path]
    if tree then return by_message(handle, tree) end
    if SERVER_METHODS[path] then return route(handle, CONTROLLER_CLUSTER) end
  else
    local length = tonumber(headers:get("content-length") or "") or 0
    if length > AWAITED and length <= LIMIT then handle:body() end
    if by_path(handle, path) then return end
  end
  -- Nobody's: the header that names a cluster would be the caller's own.
  handle:headers():remove(CLUSTER_HEADER)
end
