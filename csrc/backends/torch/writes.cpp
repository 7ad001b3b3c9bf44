#include "writes.h"

#include <vector>

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_iterator.h>

namespace pyasyncml {
namespace {

std::vector<torch::jit::Node *>
nodes_of(std::shared_ptr<torch::jit::Graph> graph)
{
    std::vector<torch::jit::Node *> nodes;
    torch::jit::DepthFirstGraphNodeIterator iterator(graph);
    while (torch::jit::Node *node = iterator.next()) {
        nodes.push_back(node);
    }
    return nodes;
}

bool
is_tensor(const torch::jit::Value *value)
{
    return value->type()->isSubtypeOf(*c10::OptionalType::ofTensor());
}

bool
is_training_flag(const torch::jit::Node *node)
{
    return (node->kind() == torch::jit::prim::GetAttr ||
            node->kind() == torch::jit::prim::SetAttr) &&
           node->s(torch::jit::attr::name) == "training";
}

/* Of one of torch's operators with one result; else NULL. */
const c10::FunctionSchema *
schema_of(const torch::jit::Node *node)
{
    const c10::FunctionSchema *schema = node->maybeSchema();

    return schema != nullptr && node->kind().is_aten() && schema->returns().size() == 1
               ? schema
               : nullptr;
}

/* Memory that the operator just made: its result isn't said to be anybody else's. */
bool
is_fresh(const torch::jit::Value *value)
{
    const c10::FunctionSchema *schema = schema_of(value->node());

    return schema != nullptr && schema->returns()[0].alias_info() == nullptr &&
           is_tensor(value);
}

/* x.masked_fill_(...): writes to its first argument, and gives that back. */
bool
is_in_place(const torch::jit::Node *node)
{
    const c10::FunctionSchema *schema = schema_of(node);

    if (schema == nullptr || schema->arguments().empty()) {
        return false;
    }
    for (size_t i = 0; i < schema->arguments().size(); i++) {
        const c10::AliasInfo *alias = schema->arguments()[i].alias_info();
        if ((alias != nullptr && alias->isWrite()) != (i == 0)) {
            return false;
        }
    }
    const c10::AliasInfo *given = schema->returns()[0].alias_info();
    return given != nullptr && *given == *schema->arguments()[0].alias_info();
}

/* Such writes reach nobody. The alias analysis knows of no order, though: were the
   tensor put beside weights in a list later, the weights would count as written to. */
void
forget_writes_to_fresh(const std::shared_ptr<torch::jit::Graph> &graph)
{
    for (torch::jit::Node *node : nodes_of(graph)) {
        if (is_in_place(node) && is_fresh(node->input(0))) {
            node->output()->replaceAllUsesWith(node->input(0));
            node->destroy();
        }
    }
}

/* The method's graph with every call inlined and the branches gone that only training
   takes: batch norm counts its batches in one of them. */
std::shared_ptr<torch::jit::Graph>
evaluation_graph(const torch::jit::Method &method)
{
    std::shared_ptr<torch::jit::Graph> graph = method.graph()->copy();
    std::vector<torch::jit::Node *> flags;

    torch::jit::Inline(*graph);
    for (torch::jit::Node *node : nodes_of(graph)) {
        if (is_training_flag(node)) {
            if (node->kind() == torch::jit::prim::SetAttr) {
                return graph;
            }
            flags.push_back(node);
        }
    }
    for (torch::jit::Node *node : flags) {
        const torch::jit::WithInsertPoint before(node);
        node->output()->replaceAllUsesWith(graph->insertConstant(false));
    }
    torch::jit::ConstantPropagation(graph);
    torch::jit::EliminateDeadCode(graph);
    return graph;
}

} // namespace

Writes
writes_of(const torch::jit::Method &method)
{
    const std::shared_ptr<torch::jit::Graph> graph = evaluation_graph(method);
    forget_writes_to_fresh(graph);
    const torch::jit::AliasDb aliases(graph);
    Writes writes;

    for (torch::jit::Node *node : nodes_of(graph)) {
        const auto kind = node->kind();
        if (kind == torch::jit::prim::SetAttr) {
            writes.attributes = true;
        } else if (kind == torch::jit::prim::GetAttr) {
            const torch::jit::Value *value = node->output();
            if (value->type()->kind() != c10::TypeKind::ClassType) {
                writes.module_memory |= aliases.hasWriters(value);
            }
        } else if (kind == torch::jit::prim::CallMethod ||
                   kind == torch::jit::prim::CallFunction) {
            writes = {true, true, true};
        }
        /* A tensor taken out of a container argument counts as the argument. */
        for (torch::jit::Value *value : node->outputs()) {
            writes.inputs |= is_tensor(value) && aliases.hasWriters(value) &&
                             aliases.mayContainAlias(value, graph->inputs().slice(1));
        }
    }
    /* Containers are copies of the caller's: writing to them reaches nobody. */
    for (const torch::jit::Value *input : graph->inputs().slice(1)) {
        writes.inputs |= is_tensor(input) && aliases.hasWriters(input);
    }
    return writes;
}

} // namespace pyasyncml
