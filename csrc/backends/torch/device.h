/* Which devices there are, through c10's virtual interfaces: CPU, CUDA and whatever
 * else registers a guard; no accelerator's own headers.
 */
#ifndef PAML_TORCH_DEVICE_H
#define PAML_TORCH_DEVICE_H

#include <c10/core/Device.h>

#include "backend.h"

namespace pyasyncml {

c10::Device device_of(DLDevice device);
DLDevice dlpack_of(c10::Device device);

/* The device, checked to be there and initialised; throws Failure(PAML_ERR_LOAD) that
   says which there are. Thread: any. */
c10::Device require_device(DLDevice device);

int list_devices(struct paml_device_info *infos, int capacity);

/* Intra-op threads of the calling thread alone: at::set_num_threads would leak to
   every thread that comes later. */
void use_threads(int threads);

} // namespace pyasyncml
#endif
