/* The floor under a SavedModel: N threads that run it on one input as fast as they can,
 * on one session, with no Python, no queue and no hand-over.
 *
 *     tensorflow_loop LIBRARY FRAMEWORK FOLDER FILE SIZE...
 *
 * FILE: an input of float32, of shape SIZE.... The model has one input and one output.
 * Reads "HOW THREADS SECONDS" lines from stdin and answers each with a line of JSON.
 * HOW: `plain`, the library's own calls; `backend`, what a worker of pyasyncml calls.
 * `sum` is the output, each element times its index, summed: by it the driver sees that
 * the work was the same.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dtypes.h"
#include "instance.h"

#define WARM_UP_RUNS 20
#define THREADS_MOST 64

static struct {
    const struct paml_tf_session *session;
    const struct paml_tf_signature *signature;
    TF_Output input, output;
    int64_t shape[8];
    int ndim;
    size_t bytes;
    void *data;
} job;

struct runner {
    pthread_t thread;
    struct paml_tf_instance *instance; /* NULL: plain */
    uint64_t count;
    double sum;
};

static atomic_bool go, stop;
static atomic_int ready;

static void
fail(const char *what)
{
    fprintf(stderr, "tensorflow_loop: %s\n", what);
    exit(1);
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

static void
keep(void *data, size_t size, void *argument)
{
    (void)data;
    (void)size;
    (void)argument;
}

static double
run_plain(const struct runner *runner)
{
    TF_Status *status = tf.NewStatus();
    TF_Tensor *input = tf.NewTensor(PAML_TF_FLOAT, job.shape, job.ndim, job.data,
                                    job.bytes, keep, NULL);
    TF_Tensor *output = NULL;
    double sum = 0;

    tf.SessionRun(job.session->session, NULL, &job.input, &input, 1, &job.output,
                  &output, 1, NULL, 0, NULL, status);
    if (tf.GetCode(status) != TF_OK) {
        fail(tf.Message(status));
    }
    if (runner->count == 0) {
        sum = weighted_sum(tf.TensorData(output),
                           tf.TensorByteSize(output) / sizeof(float));
    }
    tf.DeleteTensor(output);
    tf.DeleteTensor(input);
    tf.DeleteStatus(status);
    return sum;
}

static double
run_backend(const struct runner *runner)
{
    struct paml_value input = {.kind = PAML_TENSOR,
                               .tensor = {.data = job.data,
                                          .device = {kDLCPU, 0},
                                          .ndim = job.ndim,
                                          .dtype = paml_tf_dtype_of(PAML_TF_FLOAT),
                                          .shape = job.shape}};
    struct paml_outputs outputs;
    struct paml_run run = {
        .inputs = &input, .n_inputs = 1, .n_arguments = 1, .outputs = &outputs};
    struct paml_error error;
    double sum = 0;

    paml_outputs_init(&outputs);
    if (paml_tf_instance_run(runner->instance, &run, &error) != PAML_OK) {
        fail(error.message);
    }
    if (runner->count == 0) {
        sum = weighted_sum(outputs.values->tensor.data,
                           (size_t)paml_tensor_elements(&outputs.values->tensor));
    }
    paml_outputs_clear(&outputs);
    return sum;
}

static void *
runner_main(void *argument)
{
    struct runner *runner = argument;
    double (*once)(const struct runner *) =
        runner->instance != NULL ? run_backend : run_plain;

    for (int i = 0; i < WARM_UP_RUNS; i++) {
        runner->sum = once(runner);
    }
    atomic_fetch_add(&ready, 1);
    while (!atomic_load_explicit(&go, memory_order_acquire)) {
        sched_yield();
    }
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        runner->count++;
        once(runner);
    }
    return NULL;
}

static double
seconds_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void
measure(const char *how, int threads, double seconds)
{
    struct runner runners[THREADS_MOST];
    struct paml_error error;
    uint64_t requests = 0;
    double cpu, wall;

    if (threads < 1 || threads > THREADS_MOST) {
        fail("so many threads can't be had");
    }
    atomic_store(&go, false);
    atomic_store(&stop, false);
    atomic_store(&ready, 0);
    for (int i = 0; i < threads; i++) {
        runners[i] = (struct runner){0};
        if (how[0] == 'b') {
            runners[i].instance =
                paml_tf_instance_new(job.session, job.signature, &error);
            if (runners[i].instance == NULL) {
                fail(error.message);
            }
        }
        if (pthread_create(&runners[i].thread, NULL, runner_main, &runners[i]) != 0) {
            fail("no thread");
        }
    }
    while (atomic_load(&ready) != threads) {
        sched_yield();
    }
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    wall = seconds_of(CLOCK_MONOTONIC);
    atomic_store_explicit(&go, true, memory_order_release);
    nanosleep(&(struct timespec){(time_t)seconds,
                                 (long)(1e9 * (seconds - (double)(time_t)seconds))},
              NULL);
    atomic_store(&stop, true);
    for (int i = 0; i < threads; i++) {
        pthread_join(runners[i].thread, NULL);
        requests += runners[i].count;
        paml_tf_instance_free(runners[i].instance);
    }
    wall = seconds_of(CLOCK_MONOTONIC) - wall;
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"requests\": %llu, \"wall_s\": %.9f, \"cpu_s\": %.9f, \"sum\": %.9g}\n",
           (unsigned long long)requests, wall, cpu, runners[0].sum);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    const struct paml_tf_saved_model *model;
    struct paml_tf_program *program;
    struct paml_error error;
    char how[16];
    int threads;
    double seconds;
    FILE *file;

    if (argc < 5 || argc > 5 + 8) {
        fail("usage: tensorflow_loop LIBRARY FRAMEWORK FOLDER FILE SIZE...");
    }
    job.ndim = argc - 5;
    job.bytes = sizeof(float);
    for (int i = 0; i < job.ndim; i++) {
        job.shape[i] = atoll(argv[5 + i]);
        job.bytes *= (size_t)job.shape[i];
    }
    job.data = aligned_alloc(64, (job.bytes + 64) / 64 * 64);
    file = fopen(argv[4], "rb");
    if (file == NULL || job.data == NULL ||
        fread(job.data, 1, job.bytes, file) != job.bytes) {
        fail("the input can't be read");
    }
    fclose(file);
    if (paml_tf_open(argv[1], argv[2], &error) != PAML_OK) {
        fail(error.message);
    }
    program = paml_tf_program_new(argv[3]);
    if (program == NULL || (model = paml_tf_program_read(program, &error)) == NULL ||
        (job.signature = paml_tf_saved_model_find(model, NULL, &error)) == NULL ||
        (job.session = paml_tf_program_session(program, (DLDevice){kDLCPU, 0}, 1,
                                               &error)) == NULL ||
        paml_tf_session_find(job.session, &job.signature->inputs[0], &job.input,
                             &error) != PAML_OK ||
        paml_tf_session_find(job.session, &job.signature->outputs[0], &job.output,
                             &error) != PAML_OK) {
        fail(program != NULL ? error.message : "no memory");
    }
    while (scanf("%15s %d %lf", how, &threads, &seconds) == 3) {
        measure(how, threads, seconds);
    }
    paml_tf_program_unref(program);
    return 0;
}
