#include "accelerator.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <c10/util/Exception.h>

namespace accelerator {
namespace {

/* A NaN as float, double and bfloat16, and an index far out of any tensor. */
constexpr uint32_t POISON_WORD = 0xfff7a5a5;
constexpr size_t GRAIN = 512;

void
poison(void *data, size_t size)
{
    auto *words = static_cast<uint32_t *>(data);
    std::fill(words, words + size / sizeof(uint32_t), POISON_WORD);
}

struct Block {
    void *data;
    size_t size; /* multiple of GRAIN */
    Queue *home; /* allocated under this stream; nullptr: pinned */
    std::set<Queue *> users;
    std::vector<MarkPtr> waits; /* freed, but streams that used it go on */
};

size_t
rounded(size_t size)
{
    return (size + GRAIN - 1) / GRAIN * GRAIN;
}

Block *
new_block(size_t size, Queue *home)
{
    void *data = std::aligned_alloc(GRAIN, size);
    if (data == nullptr) {
        throw std::bad_alloc();
    }
    poison(data, size);
    return new Block{data, size, home, {}, {}};
}

/* Blocks that were freed: those some stream may still use, and those to give out. */
class Pool {
  public:
    /* The lock is held. */
    Block *take(Queue *home, size_t size)
    {
        auto found = free_.find({home, size});
        if (found == free_.end() || found->second.empty()) {
            return nullptr;
        }
        Block *block = found->second.back();
        found->second.pop_back();
        return block;
    }

    void put(Block *block)
    {
        if (block->home != nullptr) {
            /* In the order of its stream: what runs there before this may read it. */
            try {
                block->home->enqueue(POISON,
                                     [block] { poison(block->data, block->size); });
            } catch (const c10::Error &) {
                /* The device is lost: nobody reads it any more. */
            }
        } else {
            poison(block->data, block->size);
        }
        free_[{block->home, block->size}].push_back(block);
    }

    void put_once_unused(Block *block)
    {
        for (Queue *user : block->users) {
            block->waits.push_back(user->record_for_memory());
        }
        block->users.clear();
        if (block->waits.empty()) {
            put(block);
        } else {
            waiting_.push_back(block);
        }
    }

    void collect()
    {
        std::vector<Block *> left;
        for (Block *block : waiting_) {
            bool over = true;
            for (const MarkPtr &mark : block->waits) {
                over = over && mark->done();
            }
            if (over) {
                block->waits.clear();
                put(block);
            } else {
                left.push_back(block);
            }
        }
        waiting_ = std::move(left);
    }

    int64_t waiting_bytes(const Device &device) const
    {
        int64_t sum = 0;
        for (const Block *block : waiting_) {
            sum += block->home->device == &device ? (int64_t)block->size : 0;
        }
        return sum;
    }

    size_t waiting() const
    {
        return waiting_.size();
    }

  private:
    std::map<std::tuple<Queue *, size_t>, std::vector<Block *>> free_;
    std::vector<Block *> waiting_;
};

void free_on_device(void *context);
void free_pinned(void *context);

class DeviceMemory final : public c10::DeviceAllocator {
  public:
    c10::DataPtr allocate(size_t bytes) override
    {
        Device &device = device_at(current_device());
        const c10::Device where(TYPE, (c10::DeviceIndex)device.index);
        if (bytes == 0) {
            return {nullptr, nullptr, free_on_device, where};
        }
        device.check();
        const size_t size = rounded(bytes);
        Queue *home = &queue_of(current_stream(device.index));
        const std::lock_guard<std::mutex> lock(mutex_);
        pool_.collect();
        const int64_t used = device.counters.live_bytes + pool_.waiting_bytes(device);
        if (used + (int64_t)size > device.memory_limit) {
            device.counters.out_of_memory++;
            TORCH_CHECK_WITH(OutOfMemoryError, false, "simulated device ", device.index,
                             " is out of memory: ", bytes, " bytes wanted, ", used,
                             " of ", device.memory_limit.load(), " in use");
        }
        Block *block = pool_.take(home, size);
        if (block == nullptr) {
            block = new_block(size, home);
            /* As if it had been another's before: fresh memory forgives mistakes. */
            home->enqueue(POISON, [block] { poison(block->data, block->size); });
        }
        device.counters.live_blocks++;
        const int64_t live = device.counters.live_bytes += (int64_t)size;
        if (live > device.counters.peak_bytes) {
            device.counters.peak_bytes = live;
        }
        return {block->data, block, free_on_device, where};
    }

    void free(Block *block)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        Device &device = *block->home->device;
        device.counters.live_blocks--;
        device.counters.live_bytes -= (int64_t)block->size;
        pool_.put_once_unused(block);
    }

    /* As CUDA's: of memory that isn't this allocator's it knows nothing. */
    void recordStream(const c10::DataPtr &data, c10::Stream stream) override
    {
        if (data.get() == nullptr || data.get_deleter() != free_on_device) {
            return;
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        auto *block = static_cast<Block *>(data.get_context());
        Queue *user = &queue_of(stream);
        if (user != block->home) {
            block->users.insert(user);
        }
    }

    size_t waiting()
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        pool_.collect();
        return pool_.waiting();
    }

    c10::DeleterFnPtr raw_deleter() const override
    {
        return nullptr;
    }
    void copy_data(void *to, const void *from, size_t size) const override
    {
        queue_of(current_stream(current_device())).synchronize();
        std::memcpy(to, from, size);
    }
    bool initialized() override
    {
        return true;
    }
    void emptyCache(c10::MempoolId_t = {0, 0}) override
    {
    }
    /* What a test limits it to; without a limit it can't tell, as allocators may. */
    std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override
    {
        Device &device = device_at(index);
        device.check();
        const int64_t limit = device.memory_limit;
        if (limit == INT64_MAX) {
            return c10::DeviceAllocator::getMemoryInfo(index);
        }
        return {(size_t)(limit - device.counters.live_bytes), (size_t)limit};
    }
    c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override
    {
        return {};
    }
    void resetAccumulatedStats(c10::DeviceIndex) override
    {
    }
    void resetPeakStats(c10::DeviceIndex) override
    {
    }

  private:
    std::mutex mutex_;
    Pool pool_;
};

class PinnedMemory final : public at::HostAllocator {
  public:
    c10::DataPtr allocate(size_t bytes) override
    {
        if (bytes == 0) {
            return {nullptr, nullptr, free_pinned, c10::kCPU};
        }
        const size_t size = rounded(bytes);
        const std::lock_guard<std::mutex> lock(mutex_);
        pool_.collect();
        Block *block = pool_.take(nullptr, size);
        if (block == nullptr) {
            block = new_block(size, nullptr);
            blocks_[(uintptr_t)block->data] = block;
        }
        live_++;
        return {block->data, block, free_pinned, c10::kCPU};
    }

    void free(Block *block)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        live_--;
        pool_.put_once_unused(block);
    }

    bool record_event(void *data, void *, c10::Stream stream) override
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        Block *block = find(data);
        if (block != nullptr) {
            block->users.insert(&queue_of(stream));
        }
        return block != nullptr;
    }

    bool holds(const void *data)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        return find(data) != nullptr;
    }

    int64_t live()
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        return live_;
    }

    void copy_data(void *to, const void *from, size_t size) const override
    {
        std::memcpy(to, from, size);
    }
    void empty_cache() override
    {
    }
    at::HostStats get_stats() override
    {
        return {};
    }
    void reset_accumulated_stats() override
    {
    }
    void reset_peak_stats() override
    {
    }

  private:
    Block *find(const void *data)
    {
        auto after = blocks_.upper_bound((uintptr_t)data);
        if (after == blocks_.begin()) {
            return nullptr;
        }
        Block *block = std::prev(after)->second;
        const auto *end = (const char *)block->data + block->size;
        return (const char *)data < end ? block : nullptr;
    }

    std::mutex mutex_;
    Pool pool_;
    std::map<uintptr_t, Block *> blocks_; /* all that there ever were */
    int64_t live_ = 0;
};

/* Never destroyed: memory is freed while the process exits, too. */
DeviceMemory &
device_memory()
{
    static auto *memory = new DeviceMemory();
    return *memory;
}

PinnedMemory &
pinned_memory()
{
    static auto *memory = new PinnedMemory();
    return *memory;
}

void
free_on_device(void *context)
{
    if (context != nullptr) {
        device_memory().free(static_cast<Block *>(context));
    }
}

void
free_pinned(void *context)
{
    if (context != nullptr) {
        pinned_memory().free(static_cast<Block *>(context));
    }
}

} // namespace

c10::DeviceAllocator &
allocator()
{
    return device_memory();
}

at::HostAllocator &
host_allocator()
{
    return pinned_memory();
}

bool
is_pinned(const void *data)
{
    return pinned_memory().holds(data);
}

int64_t
pinned_blocks()
{
    return pinned_memory().live();
}

size_t
blocks_waiting()
{
    return device_memory().waiting();
}

bool
is_poisoned(const void *data, size_t size)
{
    const auto *bytes = static_cast<const char *>(data);
    /* Words of 4 bytes lie where blocks begin: at multiples of 4. */
    const size_t skip = (4 - (uintptr_t)bytes % 4) % 4;
    for (size_t at = skip; at + 4 <= size; at += 4) {
        uint32_t word;
        std::memcpy(&word, bytes + at, 4);
        if (word == POISON_WORD) {
            return true;
        }
    }
    return false;
}

} // namespace accelerator
