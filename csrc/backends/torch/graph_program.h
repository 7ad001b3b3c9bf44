/* A graph served: the program and the instances that the engine sees. */
#ifndef PAML_TORCH_GRAPH_PROGRAM_H
#define PAML_TORCH_GRAPH_PROGRAM_H

#include <memory>
#include <vector>

#include "graph.h"
#include "inputs.h"
#include "served.h"

namespace pyasyncml {

/* What the capsule that Python holds points to, and load() gets as its options. */
struct GraphOptions {
    std::shared_ptr<Graph> graph;
    std::shared_ptr<GraphWeights> weights;
};

class GraphProgram : public ServedProgram {
  public:
    /* `options`: a GraphOptions. Thread: worker. */
    explicit GraphProgram(const void *options)
        : options_(*static_cast<const GraphOptions *>(options))
    {
    }

    const struct paml_entry *entry() const override
    {
        return options_.graph->entry();
    }

    std::unique_ptr<ServedInstance> open(DLDevice device, int threads) override;

  private:
    const GraphOptions options_;
};

class GraphInstance : public ServedInstance {
  public:
    GraphInstance(const GraphOptions &options, DLDevice device, int threads);

  private:
    void execute(const struct paml_run &run, struct paml_outputs *outputs) override;

    /* graph_inputs.cpp: fills the slots of the inputs, everything checked. */
    std::optional<c10::Device> read_inputs(const struct paml_run &run);
    void read_tree(InputReader &reader, const Tree &tree);
    void read_leaf(InputReader &reader, const InputLeaf &leaf);
    void take_leaf(const InputLeaf &leaf, c10::IValue value);
    void check_tensor(const InputLeaf &leaf, const at::Tensor &tensor);
    void check_symbol(int32_t symbol, int64_t size, const InputLeaf &leaf, int axis);

    void run_body(const Body &body);
    void run_node(const Node &node);
    void run_call(const Node &node);
    void run_package(const Node &node);
    void run_control_flow(const Node &node);
    /* graph_replicas.cpp */
    void run_shard(const Node &node);
    void run_barrier();
    void take_results(const Body &body, std::vector<c10::IValue> &values);
    c10::IValue value_of(const Operand &operand);
    c10::IValue list_of(const Operand &operand);
    c10::IValue result_of(const Tree &tree, std::vector<c10::IValue> &leaves);
    c10::IValue call(const struct paml_run &run, std::optional<c10::Device> *came_on);

    Graph &graph_;         /* the program's, which outlives its instances */
    const bool elsewhere_; /* not the kind of device that the graph was made on */
    torch::inductor::AOTIModelPackageLoader *loader_ = nullptr; /* the graph's */
    std::vector<c10::IValue> slots_, stack_;
    std::vector<at::Tensor> written_; /* constants whose versions the run counts up */
    std::vector<uint32_t> versions_;
    int64_t made_way_ns_ = 0;
    Borrowed borrowed_;

    /* Of the symbols, in this run: their values, and who gave them. */
    std::vector<int64_t> sizes_;
    std::vector<std::pair<const InputLeaf *, int>> sizes_from_;
};

} // namespace pyasyncml
#endif
