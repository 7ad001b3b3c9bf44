/* What c10 and ATen ask of a kind of device: streams, events, hooks. */
#include "accelerator.h"

#include <cstring>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace accelerator {
namespace {

MarkPtr &
mark_of(void *event)
{
    return *static_cast<MarkPtr *>(event);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
    Guard() = default;
    explicit Guard(c10::DeviceType)
    {
    }

    c10::DeviceType type() const override
    {
        return TYPE;
    }
    c10::DeviceIndex deviceCount() const noexcept override
    {
        return (c10::DeviceIndex)device_count.load();
    }
    c10::Device getDevice() const override
    {
        return c10::Device(TYPE, (c10::DeviceIndex)current_device());
    }
    void setDevice(c10::Device device) const override
    {
        set_current_device(device.index());
    }
    void uncheckedSetDevice(c10::Device device) const noexcept override
    {
        set_current_device(device.index());
    }
    c10::Device exchangeDevice(c10::Device device) const override
    {
        const c10::Device before = getDevice();
        set_current_device(device.index());
        return before;
    }

    c10::Stream getStream(c10::Device device) const override
    {
        return current_stream(device.index());
    }
    c10::Stream exchangeStream(c10::Stream stream) const override
    {
        return exchange_stream(stream);
    }
    c10::Stream getDefaultStream(c10::Device device) const override
    {
        return stream_of(of(device).queues[0]);
    }
    c10::Stream getStreamFromGlobalPool(c10::Device device, bool = false) const override
    {
        Device &on = of(device);
        return stream_of(on.queues[1 + on.next_in_pool++ % (STREAMS - 1)]);
    }
    c10::Stream getNewStream(c10::Device device, int = 0) const override
    {
        return getStreamFromGlobalPool(device);
    }
    void *getStreamNativeHandle(const c10::Stream stream) const override
    {
        return &queue_of(stream);
    }
    bool queryStream(const c10::Stream &stream) const override
    {
        return queue_of(stream).idle();
    }
    void synchronizeStream(const c10::Stream &stream) const override
    {
        queue_of(stream).synchronize();
    }
    void synchronizeDevice(const c10::DeviceIndex index) const override
    {
        for (Queue &queue : of(c10::Device(TYPE, index)).queues) {
            queue.synchronize();
        }
    }

    void record(void **event, const c10::Stream &stream, const c10::DeviceIndex,
                const c10::EventFlag) const override
    {
        MarkPtr mark = queue_of(stream).record();
        if (*event == nullptr) {
            *event = new MarkPtr();
        }
        mark_of(*event) = std::move(mark);
    }
    void block(void *event, const c10::Stream &stream) const override
    {
        if (event != nullptr) {
            queue_of(stream).wait_for(mark_of(event));
        }
    }
    bool queryEvent(void *event) const override
    {
        if (event == nullptr) {
            return true;
        }
        const Mark &mark = *mark_of(event);
        if (mark.done() && !mark.error.empty()) {
            raise(mark.error);
        }
        return mark.done();
    }
    void synchronizeEvent(void *event) const override
    {
        if (event != nullptr) {
            const std::string &error = mark_of(event)->wait();
            if (!error.empty()) {
                raise(error);
            }
        }
    }
    double elapsedTime(void *from, void *to, const c10::DeviceIndex) const override
    {
        return (double)(mark_of(to)->at_ns - mark_of(from)->at_ns) / 1e6;
    }
    void destroyEvent(void *event, const c10::DeviceIndex) const noexcept override
    {
        delete static_cast<MarkPtr *>(event);
    }

    void recordDataPtrOnStream(const c10::DataPtr &data,
                               const c10::Stream &stream) const override
    {
        allocator().recordStream(data, stream);
    }

  private:
    static Device &of(c10::Device device)
    {
        return device_at(device.index() < 0 ? current_device() : device.index());
    }
};

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override
    {
        return true;
    }
    bool isAvailable() const override
    {
        return true;
    }
    bool hasPrimaryContext(c10::DeviceIndex) const override
    {
        return true;
    }
    c10::DeviceIndex deviceCount() const override
    {
        return (c10::DeviceIndex)device_count.load();
    }
    void setCurrentDevice(c10::DeviceIndex index) const override
    {
        set_current_device(index);
    }
    c10::DeviceIndex getCurrentDevice() const override
    {
        return (c10::DeviceIndex)current_device();
    }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override
    {
        const int before = current_device();
        set_current_device(index);
        return (c10::DeviceIndex)before;
    }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override
    {
        return exchangeDevice(index);
    }
    bool isPinnedPtr(const void *data) const override
    {
        return is_pinned(data);
    }
    c10::Allocator *getPinnedMemoryAllocator() const override
    {
        return &host_allocator();
    }
    /* Kernels are the CPU's, and so are their random numbers. */
    const at::Generator &getDefaultGenerator(c10::DeviceIndex) const override
    {
        return at::detail::getDefaultCPUGenerator();
    }
    at::Generator getNewGenerator(c10::DeviceIndex) const override
    {
        return at::detail::createCPUGenerator();
    }
    void resizePrivateUse1Bytes(const c10::Storage &storage,
                                size_t size) const override;
};

} // namespace

/* Storage grows on the current stream of its device; also for resize_. */
void
grow(const c10::Storage &storage, size_t size)
{
    const int device = storage.device().index();
    const int before = current_device();
    set_current_device(device);
    c10::DataPtr data = allocator().allocate(size);
    const size_t kept = std::min(size, storage.nbytes());
    Queue &queue = queue_of(current_stream(device));
    queue.enqueue(ON_DEVICE, [to = data.get(), from = storage.data(), kept] {
        std::memcpy(to, from, kept);
    });
    set_current_device(before);
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(size);
}

void
Hooks::resizePrivateUse1Bytes(const c10::Storage &storage, size_t size) const
{
    grow(storage, size);
}

namespace {

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

const bool registered = [] {
    c10::SetAllocator(TYPE, &allocator());
    at::setHostAllocator(TYPE, &host_allocator());
    at::RegisterPrivateUse1HooksInterface(new Hooks());
    /* By its own name: another would need Python's torch told, too. */
    c10::register_privateuse1_backend("privateuseone");
    return true;
}();

} // namespace
} // namespace accelerator
