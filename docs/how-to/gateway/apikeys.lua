-- /etc/haproxy/apikeys.lua: asks `apikeys gateway` whether a request may pass,
-- and leaves the answer in variables: txn.apikeys_status (200, 401, 403, or 503
-- where there is no answer), and what the answer tells.

-- Where to ask: setenv in haproxy.cfg.
local url = os.getenv("APIKEYS_GATEWAY")

-- The fields of the client's that the gateway may see: where keys are.
local presented = { "authorization", "x-api-key" }

-- What the answer tells, by the variable that it goes to.
local told = {
    ["txn.apikeys_id"]          = "x-consumer-id",
    ["txn.apikeys_name"]        = "x-consumer-name",
    ["txn.apikeys_scopes"]      = "x-consumer-scopes",
    ["txn.apikeys_version"]     = "x-key-version",
    ["txn.apikeys_deprecation"] = "deprecation",
    ["txn.apikeys_sunset"]      = "sunset",
    ["txn.apikeys_link"]        = "link",
}

-- every returns all values of a field, so that one that comes twice is seen.
local function every(fields, name)
    local values = {}
    local given = fields[name]
    if given then
        for i = 0, #given do
            values[#values + 1] = given[i]
        end
    end
    return values
end

core.register_action("apikeys", { "http-req" }, function(txn)
    local fields = txn.http:req_get_headers()
    local ask = {
        ["x-forwarded-method"] = { txn.sf:method() },
        ["x-forwarded-uri"]    = { txn.sf:pathq() },
        ["x-forwarded-host"]   = { txn.sf:req_fhdr("host") },
        ["x-forwarded-for"]    = every(fields, "x-forwarded-for"),
    }
    table.insert(ask["x-forwarded-for"], txn.sf:src())
    for _, name in ipairs(presented) do
        local values = every(fields, name)
        if #values > 0 then
            ask[name] = values
        end
    end

    -- HAProxy tries four times: 10 seconds in all.
    local answer = core.httpclient():get { url = url, headers = ask, timeout = 2500 }
    local status = answer.status
    if status ~= 200 and status ~= 401 and status ~= 403 then
        status = 503
    end
    txn:set_var("txn.apikeys_status", status)
    local retry = answer.headers and answer.headers["retry-after"]
    txn:set_var("txn.apikeys_retry_after", retry and retry[0] or "1")
    if status == 200 then
        for variable, field in pairs(told) do
            local values = answer.headers[field]
            if values and values[0] ~= "" then
                txn:set_var(variable, values[0])
            end
        end
    end
end, 0)
