/* One worker's side of a TorchScript program; see served.h. */
#ifndef PAML_TORCH_INSTANCE_H
#define PAML_TORCH_INSTANCE_H

#include <memory>
#include <vector>

#include <c10/core/Device.h>

#include "device.h"
#include "inputs.h"
#include "program.h"
#include "served.h"

namespace pyasyncml {

class Instance : public ServedInstance {
  public:
    Instance(Program &program, DLDevice device, int threads);

    void run(struct paml_run *run) override;

  private:
    void check_count(const struct paml_run &run) const;
    c10::IValue call(const struct paml_run &run, bool *saw_device);

    Program &program_;
    const c10::Device device_;
    const int threads_; /* 0: as the thread has it */
    const ObjectPtr module_;
    std::unique_ptr<Queue> queue_; /* on accelerators */
    std::vector<c10::IValue> stack_;
    Borrowed borrowed_;
    bool lost_state_ = false;
};

} // namespace pyasyncml
#endif
