#include "instance.h"

#include <c10/core/InferenceMode.h>

#include "errors.h"
#include "outputs.h"

namespace pyasyncml {

Instance::Instance(Program &program, DLDevice device, int threads)
    : ServedInstance(device, threads), program_(program),
      module_(program.module_for(device_))
{
    if (lane_ != nullptr) {
        lane_->follow_default_stream(); /* where the weights were copied */
    }
}

void
Instance::check_count(const struct paml_run &run) const
{
    const size_t most = program_.arguments().size();
    if (run.n_arguments > most) {
        throw Failure(PAML_ERR_INPUT,
                      std::string(program_.entry()->name) + "() takes at most " +
                          std::to_string(most) + (most == 1 ? " input" : " inputs") +
                          "; it got " + std::to_string(run.n_arguments));
    }
}

/* Runs the entry. Whatever happens, nothing refers to the inputs afterwards. */
c10::IValue
Instance::call(const struct paml_run &run, std::optional<c10::Device> *came_on)
{
    /* Also when the run throws: a module may have kept an input before it failed. */
    struct GiveBack {
        Instance &instance;
        ~GiveBack()
        {
            instance.stack_.clear();
        }
    } give_back = {*this};

    InputReader reader(run, device_, program_.writes().inputs, borrowed_, lane_.get());
    stack_.emplace_back(module_);
    for (const Argument &argument : program_.arguments()) {
        stack_.push_back(reader.read(argument));
    }
    *came_on = reader.end();
    program_.function().run(stack_);
    return std::move(stack_.back());
}

void
Instance::execute(const struct paml_run &run, struct paml_outputs *outputs)
{
    if (lost_state_) {
        throw Failure(PAML_ERR_MEMORY,
                      "memory ran out while the model kept an input in "
                      "its state; load it again");
    }
    check_count(run);
    /* What torch.inference_mode() is to eager code: the same kernels, no autograd. */
    const c10::InferenceMode inference;

    struct GiveBack {
        Instance &instance;
        ~GiveBack()
        {
            instance.lost_state_ |= !instance.borrowed_.give_back();
        }
    } give_back = {*this};

    std::optional<c10::Device> came_on;
    c10::IValue result = call(run, &came_on);
    write_outputs(std::move(result), outputs, lane_.get(), came_on);
}

} // namespace pyasyncml
