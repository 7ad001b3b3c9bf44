#include "device.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

#include <ATen/Context.h>
#include <ATen/DLConvertor.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "errors.h"

/* Of whatever OpenMP runtime and MKL LibTorch brought; absent from builds without them.
   Linking an OpenMP of our own would be a second pool of threads. */
extern "C" {
__attribute__((weak)) void omp_set_num_threads(int threads);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);
}

namespace pyasyncml {
namespace {

std::optional<c10::DeviceType>
accelerator_type()
{
    const auto type = at::getAccelerator(/*checked=*/false);
    if (type.has_value() && c10::impl::hasDeviceGuardImpl(*type)) {
        return type;
    }
    return std::nullopt;
}

int
accelerator_count()
{
    const auto type = accelerator_type();
    return type ? c10::impl::getDeviceGuardImpl(*type)->deviceCount() : 0;
}

/* Not all versions of torch have the question, nor all allocators the answer. */
template <typename Allocator>
auto
total_memory(Allocator *allocator, c10::DeviceIndex index)
    -> decltype((uint64_t)allocator->getMemoryInfo(index).second)
{
    return (uint64_t)allocator->getMemoryInfo(index).second;
}

[[maybe_unused]] uint64_t
total_memory(const void *, c10::DeviceIndex)
{
    throw std::runtime_error("torch " PAML_TORCH_VERSION " doesn't tell");
}

void
describe_accelerator(c10::Device device, struct paml_device_info &info)
{
    try {
        info.memory =
            total_memory(c10::getDeviceAllocator(device.type()), device.index());
    } catch (...) {
        snprintf(info.reason, sizeof(info.reason), "memory: %s",
                 first_line(current_message()).c_str());
    }
}

/* A word for what isn't there: whose user asked for an accelerator meant that one. */
void
describe_absent_accelerator(struct paml_device_info &info)
{
    const auto type = accelerator_type();

    info = {};
    info.device = DLDevice{kDLCUDA, 0};
    if (type) {
        info.device = dlpack_of(c10::Device(*type, 0));
    }
    snprintf(info.reason, sizeof(info.reason),
             type ? "torch " PAML_TORCH_VERSION " finds none"
                  : "torch " PAML_TORCH_VERSION " was built for the CPU alone");
}

std::string
names_of_devices()
{
    std::string names = "cpu";
    for (int i = 0; i < accelerator_count(); i++) {
        names += ", " + c10::Device(*accelerator_type(), (c10::DeviceIndex)i).str();
    }
    return names;
}

} // namespace

c10::Device
device_of(DLDevice device)
{
    if (device.device_type == kDLCUDAHost || device.device_type == kDLROCMHost) {
        return c10::Device(c10::kCPU);
    }
    return at::dlDeviceToTorchDevice(device.device_type,
                                     (c10::DeviceIndex)device.device_id);
}

DLDevice
dlpack_of(c10::Device device)
{
    return at::torchDeviceToDLDevice(device);
}

c10::Device
require_device(DLDevice wanted)
{
    if (wanted.device_type == kDLCPU) {
        return c10::Device(c10::kCPU);
    }
    if ((int)wanted.device_type == PAML_DEVICE_XLA) {
        throw Failure(PAML_ERR_LOAD,
                      "device xla:" + std::to_string(wanted.device_id) +
                          " runs JAX functions, as bundles that export.jax writes; "
                          "torch can run on: " +
                          names_of_devices());
    }
    std::optional<c10::Device> device;
    try {
        device = device_of(wanted);
    } catch (const c10::Error &) {
        /* A kind of device that torch has no word for: absent like any other. */
    }
    if (!device || device->type() != accelerator_type() ||
        std::max<int>(device->index(), 0) >= accelerator_count()) {
        const std::string name =
            device ? device->str()
                   : "of DLPack type " + std::to_string((int)wanted.device_type);
        throw Failure(PAML_ERR_LOAD, "no device " + name +
                                         "; torch can run on: " + names_of_devices());
    }
    /* Streams and allocators of CUDA throw on a native thread before this. */
    at::globalContext().lazyInitDevice(device->type());
    return *device;
}

int
list_devices(struct paml_device_info *infos, int capacity)
{
    const int count = 1 + accelerator_count();
    if (count == 1 && capacity > 1) {
        describe_absent_accelerator(infos[1]);
    }
    for (int i = 0; i < std::min(count, capacity); i++) {
        const c10::Device device =
            i == 0 ? c10::Device(c10::kCPU)
                   : c10::Device(*accelerator_type(), (c10::DeviceIndex)(i - 1));
        infos[i] = {};
        infos[i].device = dlpack_of(device);
        snprintf(infos[i].name, sizeof(infos[i].name), "%s", device.str().c_str());
        if (i == 0) {
            infos[i].memory = paml_host_memory();
        } else {
            describe_accelerator(device, infos[i]);
        }
    }
    return std::max(count, 2);
}

void
use_threads(int threads)
{
    thread_local int current = 0;
    if (threads != current) {
        /* First: torch sets a thread up at its first question, and would undo ours. */
        (void)at::get_num_threads();
        if (omp_set_num_threads != nullptr) {
            omp_set_num_threads(threads);
        }
        /* A torch.set_num_threads() anywhere in the process gave MKL a number that it
           prefers to OpenMP's. */
        if (MKL_Set_Num_Threads_Local != nullptr) {
            MKL_Set_Num_Threads_Local(threads);
        }
        current = threads;
    }
}

} // namespace pyasyncml
