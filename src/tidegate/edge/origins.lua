-- Lets pages of some other sites call as programs do, which is what replicas take alone.
--
-- It comes before every other filter: a browser asks whether it may call without any credentials
-- (https://fetch.spec.whatwg.org), and reads no answer, not even a refusal, that does not name its
-- site. The tables between the marks are generated; see routing_script.py.

--@tables

local sub = string.sub

function envoy_on_request(handle)
  local headers = handle:headers()
  local origin = headers:get("origin")
  if not origin or not ORIGINS[origin] then return end
  if sub(headers:get("content-type") or "", 1, 16) == "application/grpc" then return end
  if headers:get(":method") == "OPTIONS" and headers:get("access-control-request-method") then
    return handle:respond({
      [":status"] = "204",
      ["access-control-allow-origin"] = origin,
      ["access-control-allow-methods"] = "GET, POST",
      ["access-control-allow-headers"] = "*, authorization", -- for which the star does not stand
      ["access-control-max-age"] = "600",
      ["vary"] = "origin",
    }, "")
  end
  headers:remove("origin")
  headers:remove("sec-fetch-site")
  -- For the answer alone: no server has to know it.
  handle:streamInfo():dynamicMetadata():set(METADATA, "origin", origin)
end
