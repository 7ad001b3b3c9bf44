/* What tests call, through ctypes. Thread: any. GIL: not needed. */
#include "accelerator.h"

#include <cstring>
#include <vector>

#include <c10/util/Exception.h>

namespace accelerator {
namespace {

struct Entry {
    int64_t device, stream, kind, begin_ns, end_ns;
};

std::mutex timeline_mutex;
std::vector<Entry> timeline;
std::atomic<bool> watching{false};

} // namespace

void
note(const Queue &queue, Kind kind, int64_t begin_ns, int64_t end_ns)
{
    if (watching.load(std::memory_order_relaxed)) {
        const std::lock_guard<std::mutex> lock(timeline_mutex);
        timeline.push_back({queue.device->index, queue.id, kind, begin_ns, end_ns});
    }
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void
accelerator_set_device_count(int count)
{
    device_count = count;
}

/* stream: -1 for all. */
EXPORT void
accelerator_gate_stream(int index, int stream, int closed)
{
    Device &device = device_at(index);
    const std::lock_guard<std::mutex> lock(device.mutex);
    for (Queue &queue : device.queues) {
        if (stream < 0 || queue.id == stream) {
            queue.closed = closed != 0;
        }
    }
    device.wake_all();
}

/* kinds: the set of what waits, on all streams. */
EXPORT void
accelerator_gate_kinds(int index, uint32_t kinds)
{
    Device &device = device_at(index);
    const std::lock_guard<std::mutex> lock(device.mutex);
    device.closed = kinds;
    device.wake_all();
}

/* of: 0 kernels, 1 copies to, 2 from, 3 on the device. */
EXPORT void
accelerator_slow(int index, int of, int64_t ns)
{
    device_at(index).delay_ns[of] = ns;
}

EXPORT void
accelerator_fail(int index, uint32_t kinds, int64_t after, int for_good,
                 const char *message)
{
    Device &device = device_at(index);
    const std::lock_guard<std::mutex> lock(device.mutex);
    device.failing = kinds;
    device.fails_after = after;
    device.fails_for_good = for_good != 0;
    device.failure = message;
}

EXPORT void
accelerator_lose(int index, const char *message)
{
    device_at(index).lose(message);
}

EXPORT void
accelerator_limit_memory(int index, int64_t bytes)
{
    device_at(index).memory_limit = bytes < 0 ? INT64_MAX : bytes;
}

EXPORT void
accelerator_counters(int index, int64_t *to)
{
    auto *from = reinterpret_cast<std::atomic<int64_t> *>(&device_at(index).counters);
    for (int i = 0; i < N_COUNTERS; i++) {
        to[i] = from[i];
    }
}

EXPORT int
accelerator_n_counters()
{
    return N_COUNTERS;
}

EXPORT int64_t
accelerator_blocks_waiting()
{
    return (int64_t)blocks_waiting();
}

EXPORT int64_t
accelerator_pinned_blocks()
{
    return pinned_blocks();
}

/* Whether nothing is enqueued on any stream. */
EXPORT int
accelerator_is_idle(int index)
{
    Device &device = device_at(index);
    const std::lock_guard<std::mutex> lock(device.mutex);
    for (Queue &queue : device.queues) {
        if (!queue.drained()) {
            return 0;
        }
    }
    return 1;
}

/* Whether no stream goes on before a gate opens or something is enqueued. Of all
   devices: they wait for each other. */
EXPORT int
accelerator_is_quiet()
{
    std::vector<std::unique_lock<std::mutex>> locks;
    bool quiet = true;
    for (int i = 0; i < device_count; i++) {
        locks.emplace_back(device_at(i).mutex);
    }
    for (int i = 0; i < device_count; i++) {
        for (const Queue &queue : device_at(i).queues) {
            quiet = quiet && queue.quiet();
        }
    }
    return quiet;
}

/* Everything open, quick and in order again; what is live stays. A lost device is
   back, whatever was enqueued there is over. */
EXPORT void
accelerator_reset(int index)
{
    Device &device = device_at(index);
    {
        const std::lock_guard<std::mutex> lock(device.mutex);
        for (Queue &queue : device.queues) {
            queue.closed = false;
        }
        device.closed = 0;
        device.failing = 0;
        device.wake_all();
    }
    for (auto &delay : device.delay_ns) {
        delay = 0;
    }
    device.memory_limit = INT64_MAX;
    for (Queue &queue : device.queues) {
        queue.settle();
    }
    {
        const std::lock_guard<std::mutex> lock(device.mutex);
        device.lost.clear();
    }
    const int64_t blocks = device.counters.live_blocks,
                  bytes = device.counters.live_bytes;
    auto *counters = reinterpret_cast<std::atomic<int64_t> *>(&device.counters);
    for (int i = 0; i < N_COUNTERS; i++) {
        counters[i] = 0;
    }
    device.counters.live_blocks = blocks;
    device.counters.live_bytes = device.counters.peak_bytes = bytes;
}

EXPORT void
accelerator_watch(int on)
{
    const std::lock_guard<std::mutex> lock(timeline_mutex);
    if (on) {
        timeline.clear();
    }
    watching = on != 0;
}

/* Rows of five numbers: device, stream, kind, begin and end in ns of the monotonic
   clock. Returns how many rows there are. */
EXPORT int64_t
accelerator_timeline(int64_t *rows, int64_t capacity)
{
    const std::lock_guard<std::mutex> lock(timeline_mutex);
    const auto count = std::min((int64_t)timeline.size(), capacity);
    if (count > 0) {
        std::memcpy(rows, timeline.data(), (size_t)count * sizeof(Entry));
    }
    return (int64_t)timeline.size();
}

} // namespace accelerator
