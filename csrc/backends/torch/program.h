/* A loaded TorchScript archive and the entry that is served from it.
 *
 * Owner: the model, from load() to unload(). After load() everything is read-only but
 * the table of copies, which has a lock of its own.
 */
#ifndef PAML_TORCH_PROGRAM_H
#define PAML_TORCH_PROGRAM_H

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/function.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include "backend.h"
#include "served.h"

namespace pyasyncml {

using ObjectPtr = c10::intrusive_ptr<c10::ivalue::Object>;

/* One parameter of the entry, `self` left out. */
struct Argument {
    std::string name, type_name;
    c10::TypePtr type;
    std::optional<c10::IValue> default_value;
};

/* What running an entry may write to besides its own results. */
struct Writes {
    bool attributes = false;    /* self.h = h */
    bool module_memory = false; /* self.h.add_(1), self.seen.append(x) */
    bool inputs = false;        /* x.mul_(2) */
};

class Program : public ServedProgram {
  public:
    /* Reads an archive into host memory. Thread: any; takes no GIL. Throws. */
    Program(const char *path, const char *entry);

    /* The module that an instance on `device` runs. Instances of one device share the
       weights. An entry that assigns attributes gets an object of its own per instance,
       with the weights still shared; one that may write to the module's tensors, lists
       or dicts gets a copy of everything, so that instances neither race nor see each
       other's state. Thread: any. Locks: copies_lock_. */
    ObjectPtr module_for(c10::Device device);

    const struct paml_entry *entry() const override
    {
        return &entry_;
    }

    std::unique_ptr<ServedInstance> open(DLDevice device, int threads) override;

    torch::jit::Function &function() const
    {
        return *function_;
    }

    const std::vector<Argument> &arguments() const
    {
        return arguments_;
    }

    const Writes &writes() const
    {
        return writes_;
    }

  private:
    void describe();

    ObjectPtr module_; /* as loaded: never run when the entry writes to it */
    torch::jit::Function *function_ = nullptr; /* owned by the module's type */
    std::vector<Argument> arguments_;
    Writes writes_;

    std::string name_, output_type_;
    std::vector<struct paml_spec> inputs_;
    struct paml_spec output_ = {};
    struct paml_entry entry_ = {};

    std::mutex copies_lock_;
    std::map<std::pair<c10::DeviceType, c10::DeviceIndex>, ObjectPtr> copies_;
};

} // namespace pyasyncml
#endif
