/* struct paml_value -> c10::IValue, as the types of a TorchScript signature ask. */
#ifndef PAML_TORCH_INPUTS_H
#define PAML_TORCH_INPUTS_H

#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include "backend.h"
#include "lane.h"
#include "program.h"

namespace pyasyncml {

/* The kinds that an argument of this type takes at the top; 0: nothing that exists
   outside TorchScript fits. */
uint32_t kinds_of(const c10::Type &type);
/* The kinds that a result of this type can have at the top. */
uint32_t kinds_of_result(const c10::Type &type);

/* Tensors that view the caller's memory for the length of one run.
 *
 * Owner: an instance. Thread: its worker. */
class Borrowed {
  public:
    void add(const at::Tensor &view)
    {
        views_.push_back(view);
    }

    /* The run is over and its stack is gone: gives every view up. A storage that
       something still refers to (a module that kept its input in an attribute) gets
       memory of its own first. Returns false when there was no memory for that. */
    bool give_back() noexcept;

  private:
    std::vector<at::Tensor> views_;
};

/* Reads one run's inputs, in order. Throws Failure(PAML_ERR_INPUT) that names the
   argument and what it takes. */
class InputReader {
  public:
    /* `device`: where tensors are wanted; nothing: where they are. `lane`: of the
       device; NULL for the CPU. */
    InputReader(const struct paml_run &run, std::optional<c10::Device> device,
                bool copy, Borrowed &borrowed, Lane *lane);

    /* The next value for this argument; its default where it was left out. */
    c10::IValue read(const Argument &argument);

    /* The next value, which must be there, for this argument or part of one. */
    c10::IValue read_part(const Argument &argument);

    /* The next value as it came: a container. */
    const struct paml_value &next();

    bool at_end() const
    {
        return at_ == end_;
    }

    /* Whether what comes next stands for an input that was left out; steps over it. */
    bool skip_absent()
    {
        const bool absent = at_->kind == PAML_NONE && at_->count == PAML_ABSENT;
        at_ += absent;
        return absent;
    }

    /* All is read: what is enqueued from now on finds it on the device. Returns the
       accelerator that the first of those inputs came on that came on one; nothing:
       all came in host memory. */
    std::optional<c10::Device> end();

  private:
    struct Where;

    c10::IValue convert(const struct paml_value &value, const c10::TypePtr &type,
                        const Where &where);
    c10::IValue convert_any(const struct paml_value &value, const Where &where);
    c10::IValue scalar(const struct paml_value &value, const c10::TypePtr &type,
                       const Where &where);
    c10::IValue list(const struct paml_value &value, const c10::TypePtr &type,
                     const Where &where);
    c10::IValue dict(const struct paml_value &value, const c10::TypePtr &type,
                     const Where &where);
    c10::IValue tuple(const struct paml_value &value, const c10::TypePtr &type,
                      const Where &where);
    at::Tensor tensor(const struct paml_value &value, const Where &where);
    at::Tensor upload(const at::Tensor &host);

    const struct paml_value *at_, *end_;
    std::optional<c10::Device> device_;
    bool copy_;
    std::optional<c10::Device> came_on_;
    bool followed_ = false; /* the lane's default stream */
    Borrowed &borrowed_;
    Lane *lane_;
    std::optional<Uploads> uploads_; /* from the first of them on */
};

} // namespace pyasyncml
#endif
