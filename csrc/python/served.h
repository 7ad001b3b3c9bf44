/* An engine model as requests know it: what they were pushed to, whatever their Model
 * serves by now (Model.reload() puts another in its place).
 *
 * Owners: the Model that serves it, and each request from its submission until it is
 * back, or was taken back. Thread: any, GIL held, which guards `users`: a count of the
 * engine's own would be an atomic operation more for every request.
 */
#ifndef PAML_SERVED_H
#define PAML_SERVED_H

#include "model.h"
#include "state.h"

struct paml_served {
    struct paml_model *model; /* one reference */
    size_t users;
};

/* Takes over the caller's reference. NULL with an error set; the reference is gone. */
static inline struct paml_served *
paml_served_new(struct paml_model *model)
{
    struct paml_served *served = PyMem_RawMalloc(sizeof(*served));

    if (served == NULL) {
        paml_model_unref(model);
        PyErr_NoMemory();
        return NULL;
    }
    served->model = model;
    served->users = 1;
    return served;
}

static inline struct paml_served *
paml_served_use(struct paml_served *served)
{
    served->users++;
    return served;
}

static inline void
paml_served_leave(struct paml_served *served)
{
    if (served != NULL && --served->users == 0) {
        paml_model_unref(served->model);
        PyMem_RawFree(served);
    }
}

#endif
