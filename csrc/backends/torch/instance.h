/* One worker's side of a TorchScript program; see served.h. */
#ifndef PAML_TORCH_INSTANCE_H
#define PAML_TORCH_INSTANCE_H

#include <vector>

#include "inputs.h"
#include "program.h"
#include "served.h"

namespace pyasyncml {

class Instance : public ServedInstance {
  public:
    Instance(Program &program, DLDevice device, int threads);

  private:
    void execute(const struct paml_run &run, struct paml_outputs *outputs) override;
    void check_count(const struct paml_run &run) const;
    c10::IValue call(const struct paml_run &run, std::optional<c10::Device> *came_on);

    Program &program_;
    const ObjectPtr module_;
    std::vector<c10::IValue> stack_;
    Borrowed borrowed_;
    bool lost_state_ = false;
};

} // namespace pyasyncml
#endif
