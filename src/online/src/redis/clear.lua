-- Takes one view out of entities: KEYS are their hashes; ARGV[1] is `_ts:view`, ARGV[2] our field of
-- times, the rest its features' fields. Gives how many had it. An entity with no other view goes as a whole.

local removed = 0
for _, key in ipairs(KEYS) do
    if redis.call('TYPE', key).ok == 'hash' and redis.call('HEXISTS', key, ARGV[1]) == 1 then
        removed = removed + 1
        local others = false
        for _, field in ipairs(redis.call('HKEYS', key)) do
            if string.sub(field, 1, 4) == '_ts:' and field ~= ARGV[1] then others = true end
        end
        if others then
            for first = 1, #ARGV, 1000 do
                redis.call('HDEL', key, unpack(ARGV, first, math.min(first + 999, #ARGV)))
            end
        else
            redis.call('DEL', key)
        end
    end
end
return removed
