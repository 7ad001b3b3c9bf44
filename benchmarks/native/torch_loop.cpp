// The floor under a real model: N threads that run a TorchScript file on one input as
// fast as they can, with no Python, no queue and no hand-over.
//
//     torch_loop MODEL INPUT SIZE...      INPUT: raw float32 of shape SIZE...
//
// Reads "THREADS SECONDS" lines from stdin and answers each with a line of JSON. `sum`
// is the output's elements, each times its flat index, summed: by it the driver sees
// that the work was the same.
#include <dlfcn.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/script.h>

namespace {

// One intra-op thread for the calling thread alone. A fresh thread starts with the
// process's number until at::get_num_threads() has initialised it.
void
use_one_thread()
{
    at::get_num_threads();
    using set_num_threads = void (*)(int);
    if (auto set = reinterpret_cast<set_num_threads>(
            dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) {
        set(1);
    }
}

double
cpu_seconds()
{
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

double
weighted_sum(const at::Tensor &output)
{
    const auto flat = output.flatten().to(at::kDouble);
    return flat.dot(at::arange(flat.numel(), at::kDouble)).item<double>();
}

struct Floor {
    torch::jit::Module module;
    at::Tensor input;

    at::Tensor run(torch::jit::Method &forward) const
    {
        return forward({input}).toTensor();
    }

    void measure(int threads, double seconds)
    {
        std::atomic<bool> go{false}, stop{false};
        std::atomic<int> ready{0};
        std::vector<std::uint64_t> counts(threads);
        std::vector<std::thread> pool;
        double sum = 0;

        for (int index = 0; index < threads; index++) {
            pool.emplace_back([&, index] {
                use_one_thread();
                c10::InferenceMode inference;
                auto forward = module.get_method("forward");
                // The profiling executor specialises over the first calls.
                for (int i = 0; i < 20; i++) {
                    run(forward);
                }
                if (index == 0) {
                    sum = weighted_sum(run(forward));
                }
                ready++;
                while (!go.load(std::memory_order_acquire)) {
                    std::this_thread::yield();
                }
                std::uint64_t count = 0;
                while (!stop.load(std::memory_order_relaxed)) {
                    run(forward);
                    count++;
                }
                counts[index] = count;
            });
        }
        while (ready.load() != threads) {
            std::this_thread::yield();
        }
        const double cpu_before = cpu_seconds();
        const auto start = std::chrono::steady_clock::now();
        go.store(true, std::memory_order_release);
        std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
        stop.store(true, std::memory_order_relaxed);
        for (auto &thread : pool) {
            thread.join();
        }
        const std::chrono::duration<double> wall =
            std::chrono::steady_clock::now() - start;
        const double cpu = cpu_seconds() - cpu_before;
        std::uint64_t requests = 0;
        for (auto count : counts) {
            requests += count;
        }
        std::printf("{\"requests\": %llu, \"wall_s\": %.9f, \"cpu_s\": %.9f, "
                    "\"sum\": %.9g}\n",
                    static_cast<unsigned long long>(requests), wall.count(), cpu, sum);
        std::fflush(stdout);
    }
};

at::Tensor
read_input(const char *path, const std::vector<std::int64_t> &shape)
{
    auto tensor = at::empty(shape, at::kFloat);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(static_cast<char *>(tensor.data_ptr()),
                   static_cast<std::streamsize>(tensor.nbytes()))) {
        throw std::runtime_error(std::string("cannot read ") + path);
    }
    return tensor;
}

} // namespace

int
main(int argc, char **argv)
try {
    if (argc < 4) {
        std::fprintf(stderr, "usage: torch_loop MODEL INPUT SIZE...\n");
        return 2;
    }
    std::vector<std::int64_t> shape;
    for (int i = 3; i < argc; i++) {
        shape.push_back(std::atoll(argv[i]));
    }
    Floor floor{torch::jit::load(argv[1]), read_input(argv[2], shape)};
    floor.module.eval();
    int threads;
    double seconds;
    while (std::scanf("%d %lf", &threads, &seconds) == 2) {
        floor.measure(threads, seconds);
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "torch_loop: %s\n", error.what());
    return 1;
}
