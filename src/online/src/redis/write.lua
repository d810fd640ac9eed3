-- Applies one batch: KEYS[i] is what ARGV[i + 1] acts on; ARGV[1] is the time to live of entities in
-- seconds, 0 for ever. Gives how many rows were applied, and the places of those that were stale, from 0. Nothing is
-- written unless all can be.
--
-- Operations (see layout.rs): 'R' merges a row, column by column, unless what is stored is newer;
-- 'S' sets a key to the bytes that follow; 'D' deletes it; 'P' sets the field of a hash; 'F' says what a field of a hash
-- must be, or another process has claimed the partition since; 'B' says by its first 16 hexadecimal digits of SHA-1 what a
-- state must be, or 'none', or another process has written it since.
-- A time is 12 bytes: whole seconds as a double (exact), microseconds as u32. A version is two: event and created.

local byte, sub, unpack_, pack_ = string.byte, string.sub, struct.unpack, struct.pack
local ttl = tonumber(ARGV[1])
local NEVER = pack_('<dI4', 0, 0)

-- A google.protobuf.Timestamp as a time.
local function event_of(proto)
    local at, seconds, nanos = 1, 0, 0
    while at <= #proto do
        local tag = byte(proto, at)
        at = at + 1
        local value, inverse, scale, n, b = 0, 0, 1, 0, 0
        repeat
            b = byte(proto, at)
            if not b or n == 10 then error('damaged') end
            at, n = at + 1, n + 1
            value = value + (b % 128) * scale
            if n < 10 then inverse = inverse + (127 - b % 128) * scale end
            scale = scale * 128
        until b < 128
        -- ten bytes are a negative number: its complement is small, and so exact in a double
        if n == 10 then value = -inverse - 1 end
        if tag == 8 then
            seconds = value
        elseif tag == 16 then
            nanos = value
        else
            error('damaged')
        end
    end
    return pack_('<dI4', seconds, math.floor(nanos / 1000))
end

-- Whether version a is older than version b.
local function older(a, b)
    if a == b then return false end
    local a1, a2, a3, a4 = unpack_('<dI4dI4', a)
    local b1, b2, b3, b4 = unpack_('<dI4dI4', b)
    if a1 ~= b1 then return a1 < b1 end
    if a2 ~= b2 then return a2 < b2 end
    if a3 ~= b3 then return a3 < b3 end
    return a4 < b4
end

-- A command on a hash with any number of arguments: Lua's stack is limited.
local function each_thousand(list, call)
    for first = 1, #list, 1000 do
        call(first, unpack(list, first, math.min(first + 999, #list)))
    end
end

local function parse_row(blob)
    local row, count, at = { versions = {}, protos = {}, columns = {}, others = {} }, nil, 2
    row.ts, row.times, count, at = unpack_('<I2c0I2c0I2', blob, at)
    for i = 1, count do
        row.versions[i] = sub(blob, at, at + 23)
        row.protos[i], at = unpack_('<I1c0', blob, at + 24)
    end
    count, at = unpack_('<I4', blob, at)
    for i = 1, count do
        local field, version, value
        field, version, value, at = unpack_('<c4I2I4c0', blob, at)
        row.columns[i] = { field, version + 1, value }
    end
    count, at = unpack_('<I4', blob, at)
    for i = 1, count do
        row.others[i] = sub(blob, at, at + 3)
        at = at + 4
    end
    return row
end

-- The version of the stored row, nil where there is none; and those of columns that have their own.
local function stored_version(got)
    if not got[1] then return nil, {} end
    local event, created, own = event_of(got[1]), NEVER, {}
    local times = got[2]
    -- ours counts only while it belongs to the time that stands there: else Feast has written since
    if times and byte(times, 1) == 1 and sub(times, 2, 13) == event then
        created = sub(times, 14, 25)
        for at = 26, #times, 28 do own[sub(times, at, at + 3)] = sub(times, at + 4, at + 27) end
    end
    return event .. created, own
end

local function merge(key, row, got)
    local base, own = stored_version(got)
    local newest, proto, written, fresh, stays = base, got[1], {}, {}, {}
    for _, column in ipairs(row.columns) do
        local field, version = column[1], row.versions[column[2]]
        local current
        if base and older(version, base) then
            current = own[field] or (redis.call('HEXISTS', key, field) == 1 and base)
        end
        if current and older(version, current) then
            stays[#stays + 1] = field
        else
            written[#written + 1] = field
            written[#written + 1] = column[3]
            fresh[field] = version
            if not newest or older(newest, version) then newest, proto = version, row.protos[column[2]] end
        end
    end
    if #written == 0 and #row.columns > 0 then return false end

    if not base then
        -- what may be left of a row that was cleared
        each_thousand(row.others, function(_, ...) redis.call('HDEL', key, ...) end)
    elseif newest ~= base then
        for _, field in ipairs(stays) do own[field] = own[field] or base end
        each_thousand(row.others, function(first, ...)
            for i, value in ipairs(redis.call('HMGET', key, ...)) do
                local field = row.others[first + i - 1]
                if value and not own[field] then own[field] = base end
            end
        end)
    end
    for field, version in pairs(fresh) do own[field] = version end
    newest = newest or NEVER .. NEVER

    local times = {}
    for field, version in pairs(own) do
        if version ~= newest then times[#times + 1] = field .. version end
    end
    written[#written + 1] = row.ts
    written[#written + 1] = proto or ''
    if #times > 0 or sub(newest, 13) ~= NEVER then
        written[#written + 1] = row.times
        written[#written + 1] = '\1' .. newest .. table.concat(times)
    elseif got[2] then
        redis.call('HDEL', key, row.times)
    end
    each_thousand(written, function(_, ...) redis.call('HSET', key, ...) end)
    if ttl > 0 then redis.call('EXPIRE', key, ttl) end
    return true
end

-- First what may fail: reading everything, so that a key of another type or damaged times stop the
-- batch before its first write.
local rows = {}
for i, key in ipairs(KEYS) do
    local kind = sub(ARGV[i + 1], 1, 1)
    if kind == 'R' then
        local row = parse_row(ARGV[i + 1])
        row.got = redis.call('HMGET', key, row.ts, row.times)
        if row.got[1] and not pcall(event_of, row.got[1]) then
            return redis.error_reply('DAMAGED the time in field ' .. row.ts .. ' is no google.protobuf.Timestamp')
        end
        rows[i] = row
    elseif kind == 'P' then
        redis.call('HEXISTS', key, '')
    elseif kind == 'F' then
        local field, at = unpack_('<I4c0', ARGV[i + 1], 2)
        local claimed = redis.call('HGET', key, field)
        if claimed ~= sub(ARGV[i + 1], at) then
            return redis.error_reply('FENCED the claim is ' .. (claimed or 'none'))
        end
    elseif kind == 'B' then
        local stored, wanted = redis.call('GET', key), sub(ARGV[i + 1], 2)
        if wanted ~= (stored and sub(redis.sha1hex(stored), 1, 16) or 'none') then
            return redis.error_reply('CONFLICT a state was written by another process')
        end
    end
end

local applied, stale, touched = 0, {}, {}
for i, key in ipairs(KEYS) do
    local kind, row = sub(ARGV[i + 1], 1, 1), rows[i]
    if row then
        local id = row.ts .. '\0' .. key
        local got = touched[id] and redis.call('HMGET', key, row.ts, row.times) or row.got
        touched[id] = true
        if merge(key, row, got) then applied = applied + 1 else stale[#stale + 1] = i - 1 end
    elseif kind == 'S' then
        redis.call('SET', key, sub(ARGV[i + 1], 2))
    elseif kind == 'D' then
        redis.call('DEL', key)
    elseif kind == 'P' then
        local field, at = unpack_('<I4c0', ARGV[i + 1], 2)
        redis.call('HSET', key, field, sub(ARGV[i + 1], at))
    end
end
return { applied, stale }
