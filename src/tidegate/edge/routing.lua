-- Finds the model that a request is for, and names its cluster in a header.
--
-- gRPC: the name lies inside the message, so the listed unary methods are buffered and the
-- protobuf wire format is walked to it (https://protobuf.dev/programming-guides/encoding/).
-- REST: the name lies in the path. A body of some size is awaited, not read: an error that is
-- answered while an HTTP/1.1 client still writes closes its connection, and most clients then
-- report the closing and not the answer. One beyond the limit flows through to the replica, which
-- counts and drops it and answers when it has ended; so does one that finds no place.
-- The tables between the marks are generated from tidegate.protocols; see routing_script.py.

--@tables

local MAX_FIELDS = 16384 -- of one message: two-byte fields could keep a thread busy for seconds
local WINDOW = 512       -- bytes read at a time
local FIELD_HEAD = 20    -- bytes; a tag and a length have 10 each at most
local MOST_KNOWN = 1024  -- clusters
local SHORT = 65536      -- a shorter body is on its way to Envoy as a whole
local SWEPT = 100        -- milliseconds between two looks for places that calls have left behind

-- What a call leaves behind is little, and a look for it takes as long as it does for much.
collectgarbage("setpause", 1000)

local byte, char, find, format = string.byte, string.char, string.find, string.format
local floor, running = math.floor, coroutine.running
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

local function label_error(label)
  if #label <= NAME_LENGTH and find(label, NAME) then return nil end
  return format("'%s' is not a label of a version: use letters, digits, '.', '_' and '-'",
    shown(label))
end

local function route(handle, cluster)
  -- After body() has yielded, an older headers object is dead.
  handle:headers():replace(CLUSTER_HEADER, cluster)
  handle:clearRouteCache()
end

-- Places for so many calls at a time. The coroutine of a call stands for it: when a call is given
-- up, or has ended, it goes, and its place with it. Those are looked for when none is free.
local function places() return {calls = setmetatable({}, {__mode = "k"}), count = 0} end

local reading = PLACES and places() -- until all of a body has come, up to LIMIT
local keeping = KEPT and places()   -- until a call has ended

local function sweep(of)
  collectgarbage()
  of.count = 0
  for _ in pairs(of.calls) do of.count = of.count + 1 end
end

local function take_place(of)
  of.calls[running()], of.count = true, of.count + 1
end

local function leave_place(of)
  of.calls[running()], of.count = nil, of.count - 1
end

-- Says whether a body may be awaited. Whoever is refused for it comes again soon.
local swept = 0
local function can_read(handle)
  if reading.count < PLACES then return true end
  local now = handle:timestamp()
  if now - swept < SWEPT then return false end
  swept = now
  sweep(reading)
  return reading.count < PLACES
end

-- Lets a large message be kept until it is answered, so that another server can be asked.
local function keep(handle, size)
  if not keeping or size <= SMALL then return end
  if keeping.count >= KEPT then sweep(keeping) end
  if keeping.count >= KEPT then return end
  take_place(keeping)
  handle:headers():replace(KEPT_HEADER, "1")
end

-- Lets the whole body be held, until it is known where it goes.
local function hold(handle)
  route(handle, AWAITED)
  handle:metadata() -- the route is looked up, and with it how much may be held
end

-- The clusters of names that were found valid; the same few come all the time.
local known, count = {}, 0

-- Sends the request to a model, or answers what is wrong with its name.
local function route_to_model(handle, model, version, label)
  local key = version and model .. ":" .. version or label and model .. "@" .. label or model
  local cluster = known[key]
  if not cluster then
    local wrong = name_error(model) or (version and version_error(version))
      or (label and label_error(label))
    if wrong then return fail(handle, INVALID, wrong) end
    if count >= MOST_KNOWN then known, count = {}, 0 end
    cluster = MODEL_PREFIX .. key
    known[key], count = cluster, count + 1
  end
  -- After body() has yielded, an older headers object is dead.
  local headers = handle:headers()
  local only = headers:get(ONLY_HEADER)
  if only and only ~= model then
    return fail(handle, NOT_FOUND, cluster .. " is not served here")
  end
  headers:replace(CLUSTER_HEADER, cluster)
  handle:clearRouteCache()
end

-- Sends the request to the model of a task. One that has just this name goes before.
local function route_to_task(handle, id, name)
  if not find(id, "^[0-9]+$") or #id > TASK_LENGTH then
    return fail(handle, INVALID, format("'%s' is not the id of a task: it is a whole number, "
      .. "as 69", shown(id)))
  end
  id = gsub(id, "^0+([0-9])", "%1")
  route(handle, TASK_PREFIX .. id .. "/" .. (name and not name_error(name) and name or ""))
end

-- Sends the request to the model in a header, or to the only one.
local function route_by_header(handle, header)
  local name = handle:headers():get(header)
  if name and name ~= "" then return route_to_model(handle, name) end
  route(handle, SOLE)
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

-- A string that was found, cut to what a valid one may have and one byte more.
local function text(view, leaf, longest)
  local at, size = view.at[leaf], view.length[leaf]
  if not size or size == 0 then return nil end
  if size > longest then size = longest + 1 end
  if at >= view.first and at + size <= view.last then
    return sub(view.bytes, at - view.first + 1, at - view.first + size)
  end
  return view.body:getBytes(at, size)
end

-- A whole number that is written as a double at `i`, as text; anything else as "?".
local function whole(bytes, i)
  local a, b, c, d, e, f, g, h = byte(bytes, i, i + 7)
  if not h then return "?" end
  local exponent = (h % 128) * 16 + floor(g / 16)
  local fraction = ((((((g % 16) * 256 + f) * 256 + e) * 256 + d) * 256 + c) * 256 + b) * 256 + a
  if exponent == 0 and fraction == 0 then return "0" end
  local value = (1 + fraction / 2 ^ 52) * 2 ^ (exponent - 1023)
  if h > 127 or value >= 2 ^ 53 or value % 1 ~= 0 then return "?" end
  return format("%.0f", value)
end

-- Notes the task in an entry of a map that has been walked.
local function note_task(view, keys)
  local key = text(view, "key", NAME_LENGTH)
  if not key or not keys[key] then return end
  view.task = text(view, "text", TASK_LENGTH) or view.double or "?"
end

-- Walks the fields from `at` to `stop`. `tree` maps field numbers to the names of values, or to
-- the tree of a message. The last occurrence wins, and messages that come twice are merged, unless
-- they are the entries of a map: their trees have `keys`.
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
        local keys = node.keys
        if keys then view.length.key, view.length.text, view.double = nil, nil, nil end
        local wrong = walk(view, at, at + size, node)
        if wrong then return wrong end
        if keys then note_task(view, keys) end
      elseif node then
        view.at[node], view.length[node] = at, size
        if node == "label" then view.number = nil end -- a version has a number or a label
      end
      at = at + size
    elseif wire == 0 then
      local number
      number, i = varint(bytes, i)
      if not number then return "a number is malformed" end
      if tree[tag / 8] == "number" then view.number, view.length.label = number, nil end
      at = first + i
    elseif wire == 1 then
      if tree[(tag - 1) / 8] == "double" then view.double = whole(bytes, i) end
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

-- A compressed message cannot be read here: headers may name the model instead.
local function when_compressed(handle, method)
  local headers = handle:headers()
  local model = headers:get(MODEL_HEADER)
  if not model and method.header ~= "" then return route_by_header(handle, method.header) end
  if model then return route_to_model(handle, model, headers:get(VERSION_HEADER)) end
  fail(handle, UNSUPPORTED, "the message is compressed, so its model cannot be read: send it "
    .. "without compression, or name the model in the header " .. MODEL_HEADER,
    {["grpc-accept-encoding"] = "identity"})
end

local function by_message(handle, method)
  -- What is not small is refused beside: see aside.py.
  if reading and not can_read(handle) then return route(handle, CROWDED) end
  if reading then take_place(reading) end
  local body = handle:body(true)
  if reading then leave_place(reading) end
  local size = body:length()
  if size < 5 then
    return fail(handle, INVALID, format("the gRPC frame is truncated: it has %d bytes, and its "
      .. "head alone has 5", size))
  end
  local view = {body = body, size = size, first = 0, last = 0, fields = 0, at = {}, length = {}}
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
  if a == 1 then return when_compressed(handle, method) end
  if a ~= 0 then return fail(handle, INVALID, "the gRPC frame's flag is not 0 or 1") end
  local wrong = walk(view, 5, size, method.tree)
  if wrong then
    return fail(handle, INVALID, "the message is not the protobuf message of this method: " .. wrong)
  end
  keep(handle, size)
  if view.task then return route_to_task(handle, view.task) end
  local model = text(view, "model", NAME_LENGTH)
  if not model then
    if method.header ~= "" then return route_by_header(handle, method.header) end
    if method.server then return route(handle, CONTROLLER_CLUSTER) end
    return fail(handle, INVALID, "the message has no model name")
  end
  local task = method.task_in_name and match(model, "%-([0-9]+)$")
  if task then return route_to_task(handle, task, model) end
  local version = text(view, "version", VERSION_LENGTH)
  if view.number then version = format("%.0f", view.number) end
  route_to_model(handle, model, version, text(view, "label", NAME_LENGTH))
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

-- Sends the request where a path with the prefix of `family` leads; says whether that is anywhere.
local function by_prefix(handle, family, path, tail)
  local at = #family.prefix + 1
  for _ = 1, family.skipped do
    at = (find(path, "/", at, true) or #path) + 1
  end
  local segment = "(" .. family.segment .. ")(.*)$"
  local name, rest = match(path, "^" .. segment, at)
  if name == "" then return false end
  local model, version, label = unescaped(name), nil, nil
  local kind, verb = "/versions/", nil
  local called, after = match(rest, "^/versions/" .. segment)
  if called then
    version, verb = unescaped(called), after
  elseif family.labels then
    kind, called, after = "/labels/", match(rest, "^/labels/" .. segment)
    if called then label, verb = unescaped(called), after end
  end
  if family.verbs[verb or rest] then
    route(handle, CONTROLLER_CLUSTER)
    return true
  end
  if called then rest = kind .. (version or label) .. verb end
  local canonical = sub(path, 1, at - 1) .. model .. rest
  if canonical ~= path and not name_error(model) and not (version and version_error(version))
    and not (label and label_error(label)) then
    handle:headers():replace(":path", canonical .. tail)
  end
  route_to_model(handle, model, version, label)
  return true
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
  local header = PATHS[path]
  if header then
    route_by_header(handle, header)
    return true
  end
  for _, family in ipairs(PREFIXES) do
    if sub(path, 1, #family.prefix) == family.prefix then
      return by_prefix(handle, family, path, tail)
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
    local method = METHODS[path]
    if method and not method.tree then return route_by_header(handle, method.header) end
    if method then return by_message(handle, method) end
    if SERVER_METHODS[path] then return route(handle, CONTROLLER_CLUSTER) end
  else
    local length = tonumber(headers:get("content-length") or "") or 0
    if reading and length > SHORT and length <= LIMIT then
      if can_read(handle) then
        take_place(reading)
        hold(handle)
        handle:body()
        leave_place(reading)
      end
      keep(handle, length)
    end
    if by_path(handle, path) then return end
  end
  -- Nobody's: the header that names a cluster would be the caller's own.
  handle:headers():remove(CLUSTER_HEADER)
end
