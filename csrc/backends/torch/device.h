/* Devices through c10's virtual interfaces: one build serves CPU, CUDA and whatever
 * else registers a guard; no accelerator's own headers.
 */
#ifndef PAML_TORCH_DEVICE_H
#define PAML_TORCH_DEVICE_H

#include <string>

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>

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

/* A stream of its own on one accelerator, and the waiting for it.
 *
 * Owner: one instance. Thread: the instance's worker. */
class Queue {
  public:
    explicit Queue(c10::Device device);

    const c10::Stream &stream() const
    {
        return stream_;
    }

    /* The stream as the device's own library knows it. */
    void *native_handle() const
    {
        return stream_.native_handle();
    }

    /* What was enqueued on the device's default stream until now comes first: that is
       where inputs handed over on the device were made, as far as anybody can tell. */
    void follow_default_stream();

    /* Returns when all work of the stream is done, without burning a core. */
    void wait();

    /* Memory of this stream's pool that others read on the default stream must not be
       given out again before they are done. */
    void lend_to_default_stream(const c10::DataPtr &data) const;

  private:
    c10::Stream stream_;
    c10::Event event_;
};

} // namespace pyasyncml
#endif
