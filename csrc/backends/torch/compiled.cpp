#include "compiled.h"

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "errors.h"

namespace pyasyncml {
namespace {

/* Two loaders made at once corrupt the heap. */
std::mutex loading;

} // namespace

CompiledPackage::CompiledPackage(std::string path, size_t runners)
    : path_(std::move(path)), runners_(runners)
{
}

CompiledPackage::~CompiledPackage()
{
    const std::lock_guard<std::mutex> lock(loading);
    loaders_.clear();
}

torch::inductor::AOTIModelPackageLoader &
CompiledPackage::loader_for(c10::Device device)
{
    const std::lock_guard<std::mutex> lock(lock_);
    auto &loader = loaders_[{device.type(), device.index()}];

    if (loader == nullptr) {
        const std::lock_guard<std::mutex> one_at_a_time(loading);
        try {
            loader = std::make_unique<torch::inductor::AOTIModelPackageLoader>(
                path_, "model", /*run_single_threaded=*/false, runners_,
                device.is_cpu() ? -1 : device.index());
        } catch (...) {
            throw Failure(PAML_ERR_LOAD, path_ + ": " + first_line(current_message()));
        }
    }
    return *loader;
}

std::vector<at::Tensor>
run_compiled(torch::inductor::AOTIModelPackageLoader &loader,
             std::vector<at::Tensor> inputs, void *stream)
{
    for (at::Tensor &input : inputs) {
        /* The code was made for the strides of the example, and doesn't look. */
        input = input.contiguous();
    }
    return loader.boxed_run(std::move(inputs), stream);
}

} // namespace pyasyncml
