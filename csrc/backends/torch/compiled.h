/* A program compiled by AOTInductor, as the one node of a graph: the graph checks the
 * inputs, which the compiled code does not, and builds the outputs.
 *
 * Owner: the graph. Thread: any; the loaders' own lock is taken inside.
 */
#ifndef PAML_TORCH_COMPILED_H
#define PAML_TORCH_COMPILED_H

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

namespace torch::inductor {
class AOTIModelPackageLoader;
}

namespace pyasyncml {

class CompiledPackage {
  public:
    /* `runners`: how many may run at a time on one device. A caller too many would wait
       for one, and after a run that failed for ever. */
    CompiledPackage(std::string path, size_t runners);
    ~CompiledPackage();

    /* Unpacks and loads the code unless that is done. Throws Failure(PAML_ERR_LOAD). */
    torch::inductor::AOTIModelPackageLoader &loader_for(c10::Device device);

  private:
    const std::string path_;
    const size_t runners_;
    std::mutex lock_;
    std::map<std::pair<c10::DeviceType, c10::DeviceIndex>,
             std::unique_ptr<torch::inductor::AOTIModelPackageLoader>>
        loaders_;
};

/* One run; `inputs` are let go of as soon as the code is done with them. Throws. */
std::vector<at::Tensor> run_compiled(torch::inductor::AOTIModelPackageLoader &loader,
                                     std::vector<at::Tensor> inputs, void *stream);

} // namespace pyasyncml
#endif
