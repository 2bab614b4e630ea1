-- Ends a stream whose producer is gone. Returns the payload of its terminal entry: ours, or an earlier one.
-- Returns '' without a change if an entry came after ARGV[4], and false if the stream does not exist.
-- KEYS[1] the stream, ARGV[1] the new entry's id, ARGV[2] its payload, ARGV[3] seconds that the stream is kept,
-- ARGV[4] its last entry when it was looked at
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 then
    return false
end
local fields = last[1][2]
if fields[3] == 'end' then
    return fields[2]
end
if last[1][1] ~= ARGV[4] then
    return ''
end
redis.call('XADD', KEYS[1], ARGV[1], 'events', ARGV[2], 'end', '1')
redis.call('EXPIRE', KEYS[1], ARGV[3])
return ARGV[2]
