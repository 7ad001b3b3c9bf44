/* The floor under an ONNX model: N threads that run it on one row after the other as
 * fast as they can, with no Python, no queue and no hand-over.
 *
 *     onnx_loop LIBRARY MODEL TYPE ROWS FILE SIZE...
 *
 * FILE: ROWS inputs of shape SIZE..., one after the other, of ONNX's element type TYPE.
 * The model has one input and one output of float32. Reads "HOW THREADS SECONDS" lines
 * from stdin and answers each with a line of JSON. HOW: `plain`, the library's own
 * calls and one session for all threads; `sessions`, the same with a session a thread;
 * `backend`, what a worker of pyasyncml calls. `sum` is the first row's output, each
 * element times its index, summed: by it the driver sees that the work was the same.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "instance.h"
#include "types.h"

#define WARM_UP_RUNS 20
#define THREADS_MOST 64

static struct {
    struct ort_program *program;
    int type, rows, ndim;
    int64_t shape[8];
    size_t row_bytes;
    char *data;
} job;

struct runner {
    pthread_t thread;
    int how; /* 'p', 's' or 'b' */
    OrtSession *session;
    void *instance;
    uint64_t count;
    double sum;
};

static atomic_bool go, stop;
static atomic_int ready;

static void
fail(const char *what)
{
    fprintf(stderr, "onnx_loop: %s\n", what);
    exit(1);
}

static void
must(OrtStatus *status)
{
    if (status != NULL) {
        fail(ort.GetErrorMessage(status));
    }
}

static double
weighted_sum(const float *data, size_t count)
{
    double sum = 0;

    for (size_t i = 0; i < count; i++) {
        sum += (double)data[i] * (double)i;
    }
    return sum;
}

static double
run_plain(struct runner *runner, int row)
{
    const char *input_name = job.program->inputs[0].name;
    OrtValue *input = NULL, *output = NULL;
    OrtTensorInfo *info;
    int64_t shape[8];
    size_t ndim, count = 1;
    void *data;
    double sum = 0;

    must(ort.CreateTensorWithDataAsOrtValue(
        ort.host, job.data + (size_t)row * job.row_bytes, job.row_bytes, job.shape,
        (size_t)job.ndim, job.type, &input));
    must(ort.Run(runner->session, NULL, &input_name, (const OrtValue *const *)&input, 1,
                 job.program->output_names, 1, &output));
    must(ort.GetTensorMutableData(output, &data));
    if (runner->count == 0) {
        must(ort.GetTensorTypeAndShape(output, &info));
        must(ort.GetDimensionsCount(info, &ndim));
        must(ort.GetDimensions(info, shape, ndim));
        ort.ReleaseTensorTypeAndShapeInfo(info);
        for (size_t i = 0; i < ndim; i++) {
            count *= (size_t)shape[i];
        }
        sum = weighted_sum(data, count);
    }
    ort.ReleaseValue(input);
    ort.ReleaseValue(output);
    return sum;
}

static double
run_backend(struct runner *runner, int row)
{
    struct paml_error error;
    struct paml_outputs outputs;
    struct paml_value input = {
        .kind = PAML_TENSOR,
        .tensor = {.data = job.data + (size_t)row * job.row_bytes,
                   .device = {kDLCPU, 0},
                   .ndim = job.ndim,
                   .dtype = ort_dtype(job.type),
                   .shape = job.shape}};
    struct paml_run run = {
        .inputs = &input, .n_inputs = 1, .n_arguments = 1, .outputs = &outputs};
    double sum = 0;

    paml_outputs_init(&outputs);
    if (ort_instance_run(runner->instance, &run, &error) != PAML_OK) {
        fail(error.message);
    }
    if (runner->count == 0) {
        const DLTensor *tensor = &outputs.values->tensor;
        sum = weighted_sum(tensor->data, (size_t)paml_tensor_elements(tensor));
    }
    paml_outputs_clear(&outputs);
    return sum;
}

static double
run(struct runner *runner, int row)
{
    return runner->how == 'b' ? run_backend(runner, row) : run_plain(runner, row);
}

static void *
runner_main(void *argument)
{
    struct runner *runner = argument;
    int row = 0;

    runner->sum = run(runner, 0);
    runner->count = 1;
    for (int i = 0; i < WARM_UP_RUNS; i++) {
        run(runner, i % job.rows);
    }
    runner->count = 0;
    atomic_fetch_add(&ready, 1);
    while (!atomic_load_explicit(&go, memory_order_acquire)) {
        sched_yield();
    }
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        runner->count++;
        run(runner, row);
        row = row + 1 < job.rows ? row + 1 : 0;
    }
    return NULL;
}

static double
seconds_of(struct timeval time)
{
    return (double)time.tv_sec + 1e-6 * (double)time.tv_usec;
}

static double
cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
}

static double
wall_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void
start(struct runner *runner, const char *how)
{
    struct paml_error error;

    memset(runner, 0, sizeof(*runner));
    runner->how = how[0];
    runner->session = job.program->session;
    if (runner->how == 'b' && ort_instance_open(job.program, (DLDevice){kDLCPU, 0}, 1,
                                                &runner->instance, &error) != PAML_OK) {
        fail(error.message);
    }
    if (runner->how == 's' && ort_session_new(job.program, (DLDevice){kDLCPU, 0}, 1,
                                              &runner->session, &error) != PAML_OK) {
        fail(error.message);
    }
    if (pthread_create(&runner->thread, NULL, runner_main, runner) != 0) {
        fail("no thread");
    }
}

static void
measure(const char *how, int threads, double seconds)
{
    struct runner runners[THREADS_MOST];
    double cpu, wall;
    uint64_t requests = 0;
    struct rusage usage;

    if (threads < 1 || threads > THREADS_MOST) {
        fail("so many threads can't be had");
    }
    atomic_store(&go, false);
    atomic_store(&stop, false);
    atomic_store(&ready, 0);
    for (int i = 0; i < threads; i++) {
        start(&runners[i], how);
    }
    while (atomic_load(&ready) != threads) {
        sched_yield();
    }
    cpu = cpu_seconds();
    wall = wall_seconds();
    atomic_store_explicit(&go, true, memory_order_release);
    nanosleep(&(struct timespec){(time_t)seconds,
                                 (long)(1e9 * (seconds - (double)(time_t)seconds))},
              NULL);
    atomic_store(&stop, true);
    for (int i = 0; i < threads; i++) {
        pthread_join(runners[i].thread, NULL);
        requests += runners[i].count;
        if (runners[i].instance != NULL) {
            ort_instance_close(runners[i].instance);
        }
        if (runners[i].session != job.program->session) {
            ort.ReleaseSession(runners[i].session);
        }
    }
    wall = wall_seconds() - wall;
    cpu = cpu_seconds() - cpu;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"requests\": %llu, \"wall_s\": %.9f, \"cpu_s\": %.9f, \"sum\": %.9g, "
           "\"peak_kb\": %ld}\n",
           (unsigned long long)requests, wall, cpu, runners[0].sum, usage.ru_maxrss);
    fflush(stdout);
}

static void
read_rows(const char *path)
{
    size_t bytes = (size_t)job.rows * job.row_bytes;
    FILE *file = fopen(path, "rb");

    job.data = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (file == NULL || job.data == NULL || fread(job.data, 1, bytes, file) != bytes) {
        fail("the inputs can't be read");
    }
    fclose(file);
}

int
main(int argc, char **argv)
{
    struct paml_load_spec spec = {.threads = 1};
    struct paml_error error;
    void *program;
    char how[16];
    int threads;
    double seconds;

    if (argc < 7 || argc > 6 + 8) {
        fail("usage: onnx_loop LIBRARY MODEL TYPE ROWS FILE SIZE...");
    }
    spec.path = argv[2];
    job.type = atoi(argv[3]);
    job.rows = atoi(argv[4]);
    job.ndim = argc - 6;
    job.row_bytes = paml_dtype_bytes(ort_dtype(job.type), 1);
    for (int i = 0; i < job.ndim; i++) {
        job.shape[i] = atoll(argv[6 + i]);
        job.row_bytes *= (size_t)job.shape[i];
    }
    read_rows(argv[5]);
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    if (ort_library_open(argv[1], 0, &error) != PAML_OK ||
        ort_program_load(&spec, &program, &error) != PAML_OK) {
        fail(error.message);
    }
    job.program = program;
    while (scanf("%15s %d %lf", how, &threads, &seconds) == 3) {
        measure(how, threads, seconds);
    }
    ort_program_unload(program);
    return 0;
}
