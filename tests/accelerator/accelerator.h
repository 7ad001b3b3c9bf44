/* A simulated accelerator, for tests only: what CUDA does to a program, without a GPU.
 *
 * Devices of torch's PrivateUse1 with streams that are threads, so that work really
 * ends late; memory that is full of poison when it is fresh or freed; copies that are
 * asynchronous from pinned memory only; kernels of the CPU, run on a stream. Everything
 * a stream does can be held back, slowed, made to fail and looked at: see control.h.
 *
 * Nothing here touches Python: threads that never hold the GIL use it all.
 */
#ifndef ACCELERATOR_H
#define ACCELERATOR_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>

namespace accelerator {

constexpr int MAX_DEVICES = 8;
constexpr int STREAMS = 1 + 8; /* of a device: the default one and the pool's */
constexpr c10::DeviceType TYPE = c10::DeviceType::PrivateUse1;

/* What a stream does. Bits: gates, failures and delays are for sets of them. */
enum Kind : uint32_t {
    KERNEL = 1,
    TO_DEVICE = 2,
    TO_HOST = 4,
    ON_DEVICE = 8, /* copies between tensors of devices */
    MARK = 16,     /* an event is recorded */
    WAIT = 32,     /* for an event of another stream */
    POISON = 64    /* of freed memory */
};

/* Of one device, since it was last asked to forget. Order: as in __init__.py. */
struct Counters {
    std::atomic<int64_t> kernels{0};
    std::atomic<int64_t> to_device{0}, to_device_bytes{0}, to_device_pinned{0};
    std::atomic<int64_t> to_host{0}, to_host_bytes{0}, to_host_pinned{0};
    std::atomic<int64_t> on_device{0};
    std::atomic<int64_t> poison_read{0}; /* kernels and copies that read some */
    std::atomic<int64_t> live_blocks{0}, live_bytes{0}, peak_bytes{0};
    std::atomic<int64_t> waits{0}, synchronized{0}, out_of_memory{0};
};
constexpr int N_COUNTERS = sizeof(Counters) / sizeof(std::atomic<int64_t>);

/* One record of an event: done once, for ever. */
class Mark {
  public:
    void finish(std::string error);
    bool done() const
    {
        return done_.load(std::memory_order_acquire); /* pairs with finish() */
    }
    /* Returns the error of the work before it, "" without one. */
    const std::string &wait();
    /* Valid once done. */
    int64_t at_ns = 0;
    std::string error;

  private:
    std::atomic<bool> done_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
};
using MarkPtr = std::shared_ptr<Mark>;

struct Job {
    Kind kind;
    std::function<void()> work; /* may throw: the error of what is recorded next */
    MarkPtr awaits;             /* of WAIT */
};

struct Device;

/* A queue and the thread that works it off, in order. */
class Queue {
  public:
    /* Thread: any. Throws where the device is lost. */
    void enqueue(Kind kind, std::function<void()> work);
    MarkPtr record();
    /* As record(), but leaves an error for others to hear of. */
    MarkPtr record_for_memory();
    void wait_for(MarkPtr mark);
    bool idle();
    /* Throws the error of the work that nobody heard of yet. */
    void synchronize();
    /* Waits as synchronize() does, and forgets what went wrong. */
    void settle();
    /* The device's mutex is held. */
    bool drained() const
    {
        return finished_ == pushed_;
    }
    /* Whether it does nothing until somebody else does something. The device's mutex is
       held. */
    bool quiet() const;

    Device *device = nullptr;
    int id = 0;
    /* Under the device's mutex. */
    bool closed = false;

  private:
    friend struct Device;
    void push(Job job);
    bool may_begin() const; /* its next job; the device's mutex is held */
    void loop();
    void run(Job &job);

    std::condition_variable news_, drained_;
    std::deque<Job> jobs_;
    uint64_t pushed_ = 0, finished_ = 0;
    bool started_ = false;
    bool working_ = false;
    MarkPtr awaits_;    /* what the job it works on waits for */
    std::string error_; /* of the thread, but for synchronize() while it is idle */
};

struct Device {
    int index = 0;
    std::mutex mutex; /* of gates and of all queues */
    Queue queues[STREAMS];
    std::atomic<int> next_in_pool{0};

    /* Under the mutex. */
    uint32_t closed = 0; /* kinds */
    uint32_t failing = 0;
    int64_t fails_after = 0; /* that many more go well */
    bool fails_for_good = false;
    std::string failure;
    std::string lost; /* why; "" while it works */

    std::atomic<int64_t> delay_ns[4]{}; /* of a kernel, a copy to, from, on it */
    std::atomic<int64_t> memory_limit{INT64_MAX};
    /* One kernel at a time, and one copy each way, as hardware has it. */
    std::mutex compute, copying_in, copying_out;
    Counters counters;

    void wake_all();
    void lose(const std::string &why);
    /* Throws once the device is lost. */
    void check();
    /* Takes the failure that is due for work of this kind, "" if none is. */
    std::string failure_of(Kind kind);
};

extern std::atomic<int> device_count;
Device &device_at(int index);
Queue &queue_of(const c10::Stream &stream);
c10::Stream stream_of(const Queue &queue);
int64_t now_ns();
[[noreturn]] void raise(const std::string &message);

/* Of the calling thread. */
int current_device();
void set_current_device(int index);
c10::Stream current_stream(int device);
c10::Stream exchange_stream(c10::Stream stream);

/* memory.cpp */
c10::DeviceAllocator &allocator();
at::HostAllocator &host_allocator();
bool is_pinned(const void *data);
int64_t pinned_blocks();
size_t blocks_waiting(); /* freed, but recorded on streams that aren't done */
bool is_poisoned(const void *data, size_t size);

/* control.cpp */
void note(const Queue &queue, Kind kind, int64_t begin_ns, int64_t end_ns);

/* fallback.cpp */
at::Tensor on_host(const at::Tensor &tensor); /* a view of device memory */
/* Counts a read of poison, if this is one. */
void check_read(Device &device, const at::Tensor &host_view);

} // namespace accelerator
#endif
