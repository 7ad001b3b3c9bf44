#include "accelerator.h"

#include <chrono>
#include <thread>
#include <utility>

#include <pthread.h>

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

/* Of whatever OpenMP runtime LibTorch brought. */
extern "C" __attribute__((weak)) void omp_set_num_threads(int threads);

namespace accelerator {

std::atomic<int> device_count{2};

/* Never destroyed: streams may be at work while the process exits. */
Device &
device_at(int index)
{
    static Device *const devices = [] {
        auto *made = new Device[MAX_DEVICES];
        for (int i = 0; i < MAX_DEVICES; i++) {
            made[i].index = i;
            for (int j = 0; j < STREAMS; j++) {
                made[i].queues[j].device = &made[i];
                made[i].queues[j].id = j;
            }
        }
        return made;
    }();
    TORCH_CHECK(index >= 0 && index < device_count, "no simulated device ", index,
                "; there are ", device_count.load());
    return devices[index];
}

int64_t
now_ns()
{
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void
raise(const std::string &message)
{
    throw c10::AcceleratorError({__func__, __FILE__, (uint32_t)__LINE__}, 1, message);
}

/* --- marks --- */

void
Mark::finish(std::string with_error)
{
    at_ns = now_ns();
    error = std::move(with_error);
    const std::lock_guard<std::mutex> lock(mutex_);
    done_.store(true, std::memory_order_release); /* pairs with done() */
    changed_.notify_all();
}

const std::string &
Mark::wait()
{
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done(); });
    return error;
}

/* --- devices --- */

void
Device::wake_all()
{
    for (Queue &queue : queues) {
        queue.news_.notify_all();
    }
}

void
Device::lose(const std::string &why)
{
    const std::lock_guard<std::mutex> lock(mutex);
    if (lost.empty()) {
        lost = why;
    }
    wake_all();
}

void
Device::check()
{
    const std::lock_guard<std::mutex> lock(mutex);
    if (!lost.empty()) {
        raise(lost);
    }
}

std::string
Device::failure_of(Kind kind)
{
    const std::lock_guard<std::mutex> lock(mutex);
    if (!lost.empty()) {
        return lost;
    }
    if ((failing & kind) == 0 || fails_after-- > 0) {
        return "";
    }
    failing = 0;
    if (fails_for_good) {
        lost = failure;
        wake_all();
    }
    return failure;
}

/* --- queues --- */

void
Queue::push(Job job)
{
    const std::lock_guard<std::mutex> lock(device->mutex);
    if (!started_) {
        started_ = true;
        std::thread([this] { loop(); }).detach();
    }
    jobs_.push_back(std::move(job));
    pushed_++;
    news_.notify_one();
}

void
Queue::enqueue(Kind kind, std::function<void()> work)
{
    device->check();
    push({kind, std::move(work), nullptr});
}

MarkPtr
Queue::record()
{
    auto mark = std::make_shared<Mark>();
    push({MARK, [this, mark] { mark->finish(std::exchange(error_, "")); }, nullptr});
    return mark;
}

MarkPtr
Queue::record_for_memory()
{
    auto mark = std::make_shared<Mark>();
    push({MARK, [mark] { mark->finish(""); }, nullptr});
    return mark;
}

void
Queue::wait_for(MarkPtr mark)
{
    device->counters.waits++;
    push({WAIT,
          [mark] {
              if (!mark->wait().empty()) {
                  raise(mark->error);
              }
          },
          mark});
}

bool
Queue::idle()
{
    device->check();
    const std::lock_guard<std::mutex> lock(device->mutex);
    if (finished_ != pushed_) {
        return false;
    }
    if (!error_.empty()) {
        raise(std::exchange(error_, ""));
    }
    return true;
}

void
Queue::synchronize()
{
    device->counters.synchronized++;
    std::string error;
    {
        std::unique_lock<std::mutex> lock(device->mutex);
        const uint64_t until = pushed_;
        drained_.wait(lock, [&] { return finished_ >= until; });
        if (finished_ == pushed_) {
            error = std::exchange(error_, "");
        }
    }
    device->check();
    if (!error.empty()) {
        raise(error);
    }
}

void
Queue::settle()
{
    std::unique_lock<std::mutex> lock(device->mutex);
    drained_.wait(lock, [this] { return drained(); });
    error_.clear();
}

bool
Queue::may_begin() const
{
    return !jobs_.empty() && (!device->lost.empty() ||
                              !(closed || (device->closed & jobs_.front().kind)));
}

bool
Queue::quiet() const
{
    return working_ ? awaits_ != nullptr && !awaits_->done() : !may_begin();
}

/* Thread: the stream's. */
void
Queue::loop()
{
    pthread_setname_np(pthread_self(), "accelerator");
    (void)at::get_num_threads(); /* first: it sets the thread up */
    if (omp_set_num_threads != nullptr) {
        omp_set_num_threads(1);
    }
    const c10::InferenceMode inference;

    for (;;) {
        Job job;
        {
            std::unique_lock<std::mutex> lock(device->mutex);
            news_.wait(lock, [this] { return may_begin(); });
            job = std::move(jobs_.front());
            jobs_.pop_front();
            working_ = true;
            awaits_ = job.awaits;
        }
        run(job);
        job.work = nullptr; /* its memory goes back before anybody hears of its end */
        const std::lock_guard<std::mutex> lock(device->mutex);
        finished_++;
        working_ = false;
        awaits_ = nullptr;
        drained_.notify_all();
    }
}

void
Queue::run(Job &job)
{
    std::unique_lock<std::mutex> engine;
    int64_t delay = 0;

    if (job.kind == MARK) {
        std::string lost = device->failure_of(MARK);
        if (!lost.empty()) {
            error_ = std::move(lost);
        }
        job.work();
        return;
    }
    switch (job.kind) {
    case KERNEL:
        engine = std::unique_lock<std::mutex>(device->compute);
        delay = device->delay_ns[0];
        break;
    case TO_DEVICE:
        engine = std::unique_lock<std::mutex>(device->copying_in);
        delay = device->delay_ns[1];
        break;
    case TO_HOST:
        engine = std::unique_lock<std::mutex>(device->copying_out);
        delay = device->delay_ns[2];
        break;
    case ON_DEVICE:
        engine = std::unique_lock<std::mutex>(device->compute);
        delay = device->delay_ns[3];
        break;
    default:
        break;
    }
    const int64_t begin = now_ns();
    if (delay > 0) { /* first: what it reads is read late, what it writes comes late */
        std::this_thread::sleep_until(std::chrono::steady_clock::time_point(
            std::chrono::nanoseconds(begin + delay)));
    }
    std::string failure = device->failure_of(job.kind);
    if (failure.empty()) {
        try {
            job.work();
        } catch (const c10::Error &error) {
            failure = error.what_without_backtrace();
        } catch (const std::exception &error) {
            failure = error.what();
        }
    }
    if (!failure.empty() && error_.empty()) {
        error_ = std::move(failure);
    }
    if (job.kind & (KERNEL | TO_DEVICE | TO_HOST | ON_DEVICE)) {
        note(*this, job.kind, begin, now_ns());
    }
}

/* --- what is current, per thread --- */

namespace {

thread_local int this_device = 0;
thread_local int this_stream[MAX_DEVICES] = {};

} // namespace

int
current_device()
{
    return this_device;
}

void
set_current_device(int index)
{
    if (index >= 0) {
        this_device = device_at(index).index;
    }
}

Queue &
queue_of(const c10::Stream &stream)
{
    return device_at(stream.device_index()).queues[stream.id()];
}

c10::Stream
stream_of(const Queue &queue)
{
    return c10::Stream(c10::Stream::UNSAFE,
                       c10::Device(TYPE, (c10::DeviceIndex)queue.device->index),
                       queue.id);
}

c10::Stream
current_stream(int device)
{
    Device &of = device_at(device < 0 ? this_device : device);
    return stream_of(of.queues[this_stream[of.index]]);
}

c10::Stream
exchange_stream(c10::Stream stream)
{
    const c10::Stream before = current_stream(stream.device_index());
    this_stream[stream.device_index()] = (int)stream.id();
    return before;
}

} // namespace accelerator
