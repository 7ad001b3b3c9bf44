/* The end of the process, from atexit: exiting while a framework runs aborts it, so
 * running work is waited for, and the user is told for what. */
#include <stdio.h>
#include <unistd.h>

#include "clock.h"
#include "model_object.h"
#include "thread.h"

#define PATIENCE_NS (5 * PAML_SECOND)
#define LOOK_NS (PAML_SECOND / 10)

/* GIL: held. */
static void
tell_what_runs(struct module_state *state)
{
    for (ModelObj *object = state->models; object != NULL; object = object->next) {
        struct paml_model *model = object->model;
        int running = 0;
        for (int i = 0; i < model->n_workers; i++) {
            running += atomic_load_explicit(&model->workers[i].stats.running_since_ns,
                                            memory_order_relaxed) != 0;
        }
        if (running > 0) {
            fprintf(stderr,
                    "pyasyncml: waiting for %d run%s of model '%s' to end before the "
                    "process can; ctrl-C ends it at once\n",
                    running, running == 1 ? "" : "s", model->name);
        }
    }
    fflush(stderr);
}

PyObject *
paml_shut_down(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    struct module_state *state = paml_state_of_module(module);
    int64_t now = paml_now_ns(), tell = now + PATIENCE_NS;
    bool done = false;

    if (paml_threads_forked()) {
        Py_RETURN_NONE; /* the workers are the parent's */
    }
    state->shut_down = 1;
    for (ModelObj *object = state->models; object != NULL; object = object->next) {
        object->closing = 1;
        paml_model_close(object->model, false, NULL);
    }
    while (!done) {
        Py_BEGIN_ALLOW_THREADS done = paml_threads_join(paml_now_ns() + LOOK_NS);
        Py_END_ALLOW_THREADS if (PyErr_CheckSignals() < 0)
        {
            PyErr_Clear();
            _exit(130); /* ctrl-C while waiting: as the shell reports SIGINT */
        }
        now = paml_now_ns();
        if (!done && now >= tell) {
            tell_what_runs(state);
            tell = INT64_MAX;
        }
    }
    paml_orphans_collect(state);
    Py_RETURN_NONE;
}
