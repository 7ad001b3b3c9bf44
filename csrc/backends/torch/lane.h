/* One accelerator as one instance uses it: a stream that computes, a stream that copies
 * in beside it, the pinned memory that copies go through, and the waiting.
 *
 * c10's virtual interfaces only, so that one build serves whatever registers a guard.
 * Four things keep it right, none of which a test would miss by luck (they are planted
 * as bugs in a build with PYASYNCML_PLANT_BUGS):
 *   - the computing stream waits for the event that the copies of a run end with;
 *   - memory that was allocated for one stream and is used on another is held until it
 *     has been, or recorded there, or its allocator would hand it out again too early;
 *   - a staging buffer is written again only after the copies out of it have ended;
 *   - what the caller had enqueued before, on whatever stream, comes before the run.
 */
#ifndef PAML_TORCH_LANE_H
#define PAML_TORCH_LANE_H

#include <chrono>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

namespace pyasyncml {

/* A point in a stream, and the way to find out that it has passed: Event::synchronize
 * burns a core on CUDA (c10::EventFlag has no blocking wait), so it is asked, for a
 * moment without a pause and then after an eighth of the time that has gone by.
 *
 * Owner: an instance. Thread: its worker. */
class Mark {
  public:
    explicit Mark(c10::DeviceType type) : event_(type)
    {
    }

    void record(const c10::Stream &stream);

    /* What comes next on `stream` comes after it. */
    void block(const c10::Stream &stream) const
    {
        event_.block(stream);
    }

    /* 0: it has passed, or was never recorded. Otherwise in how many ns to ask again.
       Throws the error of what came before it: a device's errors come late. */
    int64_t ask();

    /* Throws as ask() does. */
    void wait();

  private:
    c10::Event event_;
    std::chrono::steady_clock::time_point since_;
    bool passed_ = true;
};

/* Owner: one instance. Thread: the instance's worker. */
class Lane {
  public:
    explicit Lane(c10::Device device);

    c10::Device device() const
    {
        return compute_.device();
    }

    /* What programs run on. */
    const c10::Stream &compute() const
    {
        return compute_;
    }

    /* What copies to the device go over, beside what is computed. */
    const c10::Stream &copies() const
    {
        return copies_;
    }

    /* What was enqueued on the device's default stream until now comes first: that is
       where callers made what they hand over on the device (order_after_caller()), and
       where weights were copied. */
    void follow_default_stream();

    /* A copy of the result in host memory, enqueued on the computing stream: in pinned
       memory, which its allocator has back when the caller drops it. */
    at::Tensor download(at::Tensor result) const;

    /* Memory of the computing stream's that others read on the default stream must not
       be given out again before they are done. */
    void lend_to_default_stream(const at::Tensor &result) const;

    /* The same tensor on this device, for use on the computing stream. What was
       enqueued on the other accelerator's default stream until now, where it was made,
       comes first. To be held until the run's end. */
    at::Tensor fetch(const at::Tensor &elsewhere);

    /* A result that belongs on another accelerator, there, for use on that one's
       default stream once the run has ended. */
    at::Tensor send(const at::Tensor &result, c10::Device to);

    /* What was uploaded since the last call: to be held until the computing stream is
       done with it, and let go of then. (Recording all of it there would do, at the
       price of an event a block, and of an allocator that calls a lost device when it
       is freed.) */
    std::vector<at::Tensor> take_uploaded()
    {
        return std::exchange(uploaded_, {});
    }
    void let_go(std::vector<at::Tensor> &uploaded) const;

    /* Waits for all that was enqueued. False: the device can't even tell any more. */
    bool drain() noexcept;

  private:
    friend class Uploads;

    /* Pinned memory, and the point where all copies out of it have ended. */
    struct Staging {
        explicit Staging(c10::DeviceType type) : copied(type)
        {
        }
        c10::DataPtr memory;
        size_t capacity = 0;
        Mark copied;
    };
    Staging &next_staging(size_t wanted);

    const c10::Stream &stream_on(c10::Device other);

    c10::Stream compute_, copies_;
    c10::Allocator *pinned_; /* NULL: the device has none */
    Staging ring_[2];
    int next_ = 0;
    std::vector<at::Tensor> uploaded_;
    Mark usual_, drained_;
    /* Of other accelerators, for copies from and to there: their default streams, which
       are their users', never wait for this device. */
    std::map<c10::DeviceIndex, c10::Stream> elsewhere_;
};

/* The copies of one run's inputs to the device, on the copying stream: they go on while
 * the computing stream is busy with the run before.
 *
 * Owner: the run's stack. Thread: the worker. */
class Uploads {
  public:
    /* `bytes`: of all that upload() will be given, about. */
    Uploads(Lane &lane, size_t bytes) : lane_(lane), left_(bytes)
    {
    }
    ~Uploads();

    Uploads(const Uploads &) = delete;
    Uploads &operator=(const Uploads &) = delete;

    /* On the device, for use on the computing stream after end(). The host's memory is
       free when it returns. */
    at::Tensor upload(const at::Tensor &host);

    /* What is enqueued on the computing stream from now on finds the copies made. */
    void end();

  private:
    char *place(size_t bytes);
    void leave_staging();
    void copy_in_parts(const at::Tensor &host, const at::Tensor &device);

    Lane &lane_;
    size_t left_;
    Lane::Staging *staging_ = nullptr;
    size_t used_ = 0;
    bool copied_ = false;
};

/* What the calling thread has enqueued so far, on whatever stream is its current one,
   comes before all runs that are begun from now on. Thread: any. */
void order_after_caller(c10::Device device);

} // namespace pyasyncml
#endif
