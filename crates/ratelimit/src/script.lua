-- The generic cell rate algorithm over several buckets; the twin of gcra.rs, which explains it.
-- KEYS[i]: a bucket. ARGV[1]: microseconds to add to the clock (0 but in tests). Then five for each bucket:
-- emission interval (us), capacity, least, most, tokens given back.
-- Returns: index of the denying bucket or 0, microseconds to wait, then (granted, microseconds until full) each.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2]) + tonumber(ARGV[1])
local denied, wait = 0, 0
local pending, before, after, granted, write_anyway = {}, {}, {}, {}, {}

for i, key in ipairs(KEYS) do
  local base = 5 * i - 3
  local emission, capacity = tonumber(ARGV[base]), tonumber(ARGV[base + 1])
  local least, most = tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
  local back = tonumber(ARGV[base + 4])
  local full = emission * capacity
  local tat = pending[key]
  if not tat then tat = tonumber(redis.call('GET', key) or now) or now end
  write_anyway[i] = back > 0 or tat > now + full
  tat = math.max(math.min(tat, now + full) - emission * back, now)
  local free = math.floor((now + full - tat) / emission)
  before[i], after[i], granted[i] = tat, tat, 0
  if free < least then
    local missing = tat + emission * least - full - now
    if denied == 0 or missing > wait then denied, wait = i, missing end
  else
    granted[i] = math.min(free, most)
    after[i] = tat + emission * granted[i]
  end
  pending[key] = after[i]
end

local answer = { denied, wait }
for i, key in ipairs(KEYS) do
  local tat = after[i]
  if denied > 0 then tat, granted[i] = before[i], 0 end
  if denied == 0 or write_anyway[i] then
    if tat > now then
      -- '%.0f', because Lua would write so large a number with an exponent.
      redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
    else
      redis.call('DEL', key)
    end
  end
  answer[#answer + 1] = granted[i]
  answer[#answer + 1] = tat - now
end
return answer
