#include "lane.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace pyasyncml {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;

/* Where tensors begin in a staging buffer. */
constexpr size_t ALIGNMENT = 256;

/* Of one of the two staging buffers: enough for a copy to run at full speed. Larger
   inputs go through both in turns, so that host memory is copied into the one while the
   device copies out of the other, and no instance pins more than twice this. */
constexpr size_t STAGING_MOST = 8 << 20;

/* How long a question may be asked again at once. */
constexpr auto SPIN = microseconds(30);

#ifdef PYASYNCML_PLANT_BUGS
/* Whether this guard is to be left out: the name stands in PYASYNCML_PLANTED. */
bool
planted(const char *bug)
{
    const char *planted = getenv("PYASYNCML_PLANTED");
    return planted != nullptr && strstr(planted, bug) != nullptr;
}
#else
constexpr bool
planted(const char *)
{
    return false;
}
#endif

const c10::impl::DeviceGuardImplInterface *
guard_of(const c10::Stream &stream)
{
    return c10::impl::getDeviceGuardImpl(stream.device_type());
}

void
record_on(const at::Tensor &tensor, const c10::Stream &stream)
{
    if (tensor.has_storage()) {
        guard_of(stream)->recordDataPtrOnStream(tensor.storage().data_ptr(), stream);
    }
}

/* NULL where the device has no pinned memory: copies block then. */
c10::Allocator *
pinned_allocator(c10::DeviceType type)
{
    try {
        if (c10::Allocator *allocator = at::getHostAllocator(type)) {
            return allocator;
        }
    } catch (const c10::Error &) {
    }
    try {
        return at::globalContext().getPinnedMemoryAllocator(type);
    } catch (const c10::Error &) {
        return nullptr;
    }
}

at::Tensor
view_of(void *data, const at::Tensor &like, c10::IntArrayRef sizes,
        c10::IntArrayRef strides)
{
    return at::for_blob(data, sizes)
        .strides(strides)
        .options(at::TensorOptions(like.scalar_type()))
        .make_tensor();
}

} // namespace

/* --- points in a stream --- */

void
Mark::record(const c10::Stream &stream)
{
    passed_ = true; /* if it throws there is nothing to ask */
    event_.record(stream);
    since_ = steady_clock::now();
    passed_ = false;
}

int64_t
Mark::ask()
{
    if (passed_) {
        return 0;
    }
    for (;;) {
        bool passed;
        try {
            passed = event_.query();
        } catch (...) {
            passed_ = true; /* as far as anybody will ever know */
            throw;
        }
        if (passed) {
            passed_ = true;
            return 0;
        }
        const auto elapsed = steady_clock::now() - since_;
        if (elapsed > SPIN) {
            return nanoseconds(std::clamp<steady_clock::duration>(
                                   elapsed / 8, microseconds(20), microseconds(500)))
                .count();
        }
    }
}

void
Mark::wait()
{
    while (const int64_t pause = ask()) {
        std::this_thread::sleep_for(nanoseconds(pause));
    }
}

/* --- the lane --- */

Lane::Lane(c10::Device device)
    : compute_(c10::impl::getDeviceGuardImpl(device.type())
                   ->getStreamFromGlobalPool(device)),
      /* Of the other pool, where there are two: never the same stream then. */
      copies_(c10::impl::getDeviceGuardImpl(device.type())
                  ->getStreamFromGlobalPool(device, /*isHighPriority=*/true)),
      pinned_(pinned_allocator(device.type())),
      ring_{Staging(device.type()), Staging(device.type())}, usual_(device.type()),
      drained_(device.type())
{
}

void
Lane::follow_default_stream()
{
    if (planted("follow")) {
        return;
    }
    usual_.record(guard_of(compute_)->getDefaultStream(device()));
    usual_.block(compute_);
}

Lane::Staging &
Lane::next_staging(size_t wanted)
{
    Staging &staging = ring_[next_];
    const size_t size = std::min(wanted, STAGING_MOST);

    next_ = 1 - next_;
    if (!planted("reuse")) {
        try {
            staging.copied.wait();
        } catch (...) {
            /* Whose copies those were has been told, by its own mark. */
        }
    }
    if (staging.capacity < size) {
        /* Half as much again, so that batches that grow row by row settle soon. */
        const size_t capacity = std::min(
            std::max(size, staging.capacity + staging.capacity / 2), STAGING_MOST);
        staging.capacity = 0;
        staging.memory.clear();
        staging.memory = pinned_->allocate(capacity);
        staging.capacity = capacity;
    }
    return staging;
}

at::Tensor
Lane::download(at::Tensor result) const
{
    if (!result.is_non_overlapping_and_dense()) {
        result = result.contiguous();
    }
    if (pinned_ == nullptr) {
        return result.to(at::kCPU);
    }
    const at::Tensor host = at::detail::empty_strided_generic(
        result.sizes(), result.strides(), pinned_,
        c10::DispatchKeySet(c10::DispatchKey::CPU), result.scalar_type());
    host.copy_(result, /*non_blocking=*/true);
    return host;
}

void
Lane::lend_to_default_stream(const at::Tensor &result) const
{
    if (!planted("record")) {
        record_on(result, guard_of(compute_)->getDefaultStream(device()));
    }
}

void
Lane::let_go(std::vector<at::Tensor> &uploaded) const
{
    for (const at::Tensor &tensor : uploaded) {
        /* A module that kept its input will use it again. */
        if (tensor.use_count() > 1 || tensor.storage().use_count() > 1) {
            record_on(tensor, compute_);
        }
    }
    uploaded.clear();
}

bool
Lane::drain() noexcept
{
    try {
        for (const c10::Stream &stream : {copies_, compute_}) {
            drained_.record(stream);
            drained_.wait();
        }
        return true;
    } catch (...) {
        return false;
    }
}

/* --- tensors of other accelerators --- */

const c10::Stream &
Lane::stream_on(c10::Device other)
{
    auto found = elsewhere_.find(other.index());
    if (found == elsewhere_.end()) {
        const c10::Stream stream =
            guard_of(compute_)->getStreamFromGlobalPool(other, /*isHighPriority=*/true);
        found = elsewhere_.emplace(other.index(), stream).first;
    }
    return found->second;
}

/* A copy between two devices is of the streams that are current on both. */
at::Tensor
Lane::fetch(const at::Tensor &elsewhere)
{
    const c10::Stream &theirs = stream_on(elsewhere.device());
    const c10::StreamGuard on_theirs(theirs);
    c10::Event made(device().type()), copied(device().type());

    made.record(guard_of(theirs)->getDefaultStream(elsewhere.device()));
    made.block(theirs);
    at::Tensor here = elsewhere.to(device());
    copied.record(theirs);
    copied.block(compute_);
    return here;
}

at::Tensor
Lane::send(const at::Tensor &result, c10::Device to)
{
    const c10::Stream &theirs = stream_on(to);
    const c10::StreamGuard on_theirs(theirs);
    c10::Event copied(device().type());

    at::Tensor there = result.to(to);
    record_on(there, guard_of(theirs)->getDefaultStream(to));
    copied.record(theirs);
    copied.block(compute_);
    return there;
}

/* --- copies to the device --- */

Uploads::~Uploads()
{
    try {
        end();
    } catch (...) {
        /* The run has failed already, or its mark will tell. */
    }
}

/* The copies out of the buffer are all enqueued. */
void
Uploads::leave_staging()
{
    if (staging_ != nullptr) {
        Lane::Staging *staging = staging_;
        staging_ = nullptr;
        staging->copied.record(lane_.copies_);
    }
}

/* Room for `bytes`, no more than a buffer can have. */
char *
Uploads::place(size_t bytes)
{
    if (staging_ == nullptr || staging_->capacity - used_ < bytes) {
        leave_staging();
        used_ = 0;
        staging_ = &lane_.next_staging(std::max(bytes, left_));
    }
    char *at = static_cast<char *>(staging_->memory.get()) + used_;
    used_ = std::min(staging_->capacity,
                     (used_ + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    left_ -= std::min(left_, bytes);
    return at;
}

/* Both are dense, in the same order. */
void
Uploads::copy_in_parts(const at::Tensor &host, const at::Tensor &device)
{
    const at::Tensor flat = device.as_strided({device.numel()}, {1});
    const int64_t item = (int64_t)host.element_size();
    const int64_t most = (int64_t)STAGING_MOST / item;
    const char *from = static_cast<const char *>(host.const_data_ptr());

    for (int64_t at = 0; at < host.numel(); at += most) {
        const int64_t part = std::min(most, host.numel() - at);
        char *staged = place((size_t)(part * item));
        memcpy(staged, from + at * item, (size_t)(part * item));
        flat.narrow(0, at, part)
            .copy_(view_of(staged, host, {part}, {1}), /*non_blocking=*/true);
    }
}

at::Tensor
Uploads::upload(const at::Tensor &host)
{
    const c10::StreamGuard on_copies(lane_.copies_);
    const bool dense = host.is_non_overlapping_and_dense();
    const auto options = host.options().device(lane_.device()).pinned_memory(false);
    at::Tensor device = dense ? at::empty_strided(host.sizes(), host.strides(), options)
                              : at::empty(host.sizes(), options);

    copied_ = true;
    if (!planted("record")) {
        lane_.uploaded_.push_back(device);
    }
    if (device.numel() == 0) {
        return device;
    }
    if (lane_.pinned_ == nullptr) {
        device.copy_(host);
    } else if (device.nbytes() > STAGING_MOST) {
        copy_in_parts(dense ? host : host.contiguous(), device);
    } else {
        char *staged = place(device.nbytes());
        const at::Tensor view = view_of(staged, host, device.sizes(), device.strides());
        if (dense) {
            memcpy(staged, host.const_data_ptr(), host.nbytes());
        } else {
            view.copy_(host);
        }
        device.copy_(view, /*non_blocking=*/true);
    }
    return device;
}

void
Uploads::end()
{
    if (!copied_) {
        return;
    }
    copied_ = false;
    const Lane::Staging *last = staging_; /* none: nothing is under way */
    leave_staging();
    if (last != nullptr && !planted("wait")) {
        last->copied.block(lane_.compute_);
    }
}

/* --- the caller's streams --- */

void
order_after_caller(c10::Device device)
{
    const auto *guard = c10::impl::getDeviceGuardImpl(device.type());
    const c10::Stream current = guard->getStream(device);
    const c10::Stream usual = guard->getDefaultStream(device);

    if (current != usual && !planted("order")) {
        c10::Event event(device.type());
        event.record(current);
        event.block(usual);
    }
}

} // namespace pyasyncml
