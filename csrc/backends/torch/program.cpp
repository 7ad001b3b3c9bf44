#include "program.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include <sys/stat.h>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include "errors.h"
#include "inputs.h"
#include "instance.h"
#include "writes.h"

namespace pyasyncml {
namespace {

/* What can be told from a file without LibTorch, whose words for it are about zip
   directories. */
void
check_file(const std::string &path)
{
    struct stat info;
    if (stat(path.c_str(), &info) != 0) {
        throw Failure(PAML_ERR_LOAD, path + ": " + strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) {
        throw Failure(PAML_ERR_LOAD, path + ": a folder, not a TorchScript archive");
    }
    if (info.st_size == 0) {
        throw Failure(PAML_ERR_LOAD, path + ": the file is empty");
    }
    const std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(path.c_str(), "rb"),
                                                      fclose);
    if (file == nullptr) {
        throw Failure(PAML_ERR_LOAD, path + ": " + strerror(errno));
    }
    char magic[4] = {};
    if (fread(magic, 1, sizeof(magic), file.get()) != sizeof(magic) ||
        memcmp(magic, "PK\3\4", sizeof(magic)) != 0) {
        throw Failure(PAML_ERR_LOAD, path + ": not a TorchScript archive (what "
                                            "torch.jit.save writes is a zip file)");
    }
}

/* LibTorch's reason, in words about the file. */
std::string
reason_of(const std::string &message)
{
    const auto says = [&](const char *words) {
        return message.find(words) != std::string::npos;
    };
    if (says("failed finding central directory")) {
        return "the archive is truncated or damaged";
    }
    if ((says("file not found") && (says("constants.pkl") || says("version"))) ||
        says("file in archive is not in a subdirectory")) {
        return "a zip file without a TorchScript program (torch.jit.save writes one; "
               "torch.save and torch.export.save do not)";
    }
    return first_line(message);
}

torch::jit::Module
read_archive(const std::string &path)
{
    check_file(path);
    try {
        torch::jit::Module module = torch::jit::load(path, c10::Device(c10::kCPU));
        module.eval();
        return module;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const c10::OutOfMemoryError &) {
        throw;
    } catch (...) {
        throw Failure(PAML_ERR_LOAD, path + ": " + reason_of(current_message()));
    }
}

/* "encoder.forward" is the method `forward` of the submodule `encoder`: takes what is
   before the last dot off the name. */
torch::jit::Module
find_module(torch::jit::Module module, const char *path, std::string &name)
{
    for (size_t dot; (dot = name.find('.')) != std::string::npos;) {
        const std::string attribute = name.substr(0, dot);
        if (!module.hasattr(attribute) || !module.attr(attribute).isModule()) {
            throw Failure(PAML_ERR_LOAD, std::string(path) + ": no entry '" + name +
                                             "': there is no module '" + attribute +
                                             "'");
        }
        module = module.attr(attribute).toModule();
        name.erase(0, dot + 1);
    }
    return module;
}

torch::jit::Method
find_entry(const torch::jit::Module &module, const char *path, const std::string &name)
{
    if (auto method = module.find_method(name)) {
        return *method;
    }
    std::string names;
    for (const torch::jit::Method &method : module.get_methods()) {
        if (method.name().find("__") != 0) {
            names += (names.empty() ? "" : ", ") + method.name();
        }
    }
    throw Failure(PAML_ERR_LOAD,
                  std::string(path) + ": no entry '" + name + "'; " +
                      (names.empty() ? "there are none" : "there are: " + names));
}

/* Copies forget requires_grad, on which the choice of some kernels depends (matmul's
   folding): bit-equality needs it as it was. */
void
restore_requires_grad(const ObjectPtr &from, const ObjectPtr &to)
{
    const auto originals = torch::jit::Module(from).parameters();
    const auto copies = torch::jit::Module(to).parameters();
    auto copy = copies.begin();
    for (const at::Tensor &original : originals) {
        (*copy).set_requires_grad(original.requires_grad());
        ++copy;
    }
}

/* `share`: the tensors of the module's attributes stay the same ones. */
ObjectPtr
copy_module(const ObjectPtr &module, c10::Device device, bool share)
{
    const at::NoGradGuard no_grad;
    c10::IValue::HashIdentityIValueMap memo;
    if (share) {
        for (const c10::IValue &value : torch::jit::Module(module).attributes()) {
            if (value.isTensor()) {
                memo.emplace(value, value);
            }
        }
    }
    ObjectPtr copy =
        device.is_cpu() ? module->deepcopy(memo) : module->deepcopy(memo, device);
    restore_requires_grad(module, copy);
    return copy;
}

} // namespace

Program::Program(const char *path, const char *entry)
{
    std::string name = entry != nullptr ? entry : "forward";
    const torch::jit::Module module = find_module(read_archive(path), path, name);
    const torch::jit::Method method = find_entry(module, path, name);

    module_ = module._ivalue();
    function_ = &method.function();
    name_ = method.name();
    writes_ = writes_of(method);
    describe();
}

std::unique_ptr<ServedInstance>
Program::open(DLDevice device, int threads)
{
    return std::make_unique<Instance>(*this, device, threads);
}

void
Program::describe()
{
    const c10::FunctionSchema &schema = function_->getSchema();
    for (size_t i = 1; i < schema.arguments().size(); i++) {
        const c10::Argument &argument = schema.arguments()[i];
        arguments_.push_back({argument.name(), argument.type()->annotation_str(),
                              argument.type(), argument.default_value()});
    }
    for (const Argument &argument : arguments_) {
        struct paml_spec spec = {};
        spec.name = argument.name.c_str();
        spec.type = argument.type_name.c_str();
        spec.kinds = kinds_of(*argument.type);
        spec.ndim = -1;
        spec.batch_axis = -1;
        spec.optional = argument.default_value.has_value();
        inputs_.push_back(spec);
    }
    output_.kinds = PAML_KIND_ANY;
    if (schema.returns().size() == 1) {
        const c10::TypePtr &type = schema.returns()[0].type();
        output_type_ = type->annotation_str();
        output_.type = output_type_.c_str();
        output_.kinds = kinds_of_result(*type);
    }
    output_.ndim = -1;
    output_.batch_axis = -1;

    entry_.name = name_.c_str();
    entry_.n_inputs = (uint32_t)inputs_.size();
    entry_.inputs = inputs_.data();
    entry_.stateful = writes_.attributes || writes_.module_memory;
    entry_.n_outputs = 1;
    entry_.outputs = &output_;
}

ObjectPtr
Program::module_for(c10::Device device)
{
    const std::lock_guard<std::mutex> lock(copies_lock_);

    ObjectPtr shared = module_;
    if (!device.is_cpu()) {
        ObjectPtr &copy = copies_[{device.type(), device.index()}];
        if (copy == nullptr) {
            copy = copy_module(module_, device, /*share=*/false);
        }
        shared = copy;
    }
    /* The original is never run then, or a later instance would start from the state
       that an earlier one has reached. */
    if (writes_.module_memory) {
        return copy_module(shared, device, /*share=*/false);
    }
    if (writes_.attributes) {
        return copy_module(shared, device, /*share=*/true);
    }
    return shared;
}

} // namespace pyasyncml
