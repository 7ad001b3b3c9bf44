/* Models and mailboxes by hand: what tests of the engine share. */
#ifndef PAML_ENGINE_HELPERS_H
#define PAML_ENGINE_HELPERS_H

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "echo.h"
#include "mailbox.h"
#include "model.h"
#include "thread.h"

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

static const struct paml_queue_limits plenty = {INT64_MAX / 2, INT64_MAX / 2,
                                                PAML_FULL_WAIT};

/* --- helpers --- */

static inline struct paml_op *
op_new(struct paml_mailbox *mailbox)
{
    struct paml_op *op = malloc(sizeof(*op));

    CHECK(op != NULL);
    paml_op_init(op, mailbox);
    op->submitted_ns = paml_now_ns();
    return op;
}

static inline void
op_free(struct paml_op *op)
{
    paml_op_clear(op);
    free(op);
}

/* The next op to arrive, waiting for the bell as a loop does. */
static inline struct paml_op *
await(struct paml_mailbox *mailbox, struct paml_op **rest)
{
    struct pollfd bells[] = {{.fd = mailbox->fd, .events = POLLIN},
                             {.fd = mailbox->alarm_fd, .events = POLLIN}};
    struct paml_op *op;

    while (*rest == NULL) {
        if (paml_mailbox_rest(mailbox, 0, 0)) {
            CHECK(poll(bells, 2, 30000) >= 1);
            paml_mailbox_silence(mailbox, paml_now_ns());
        }
        *rest = paml_mailbox_take(mailbox);
    }
    op = *rest;
    *rest = op->next;
    return op;
}

static inline struct paml_model *
model_of(const struct paml_model_options *options, struct paml_mailbox *mailbox,
         struct paml_op **rest)
{
    struct paml_model *model = paml_model_new(&paml_echo_backend, options);
    struct paml_op *ready;

    CHECK(model != NULL);
    paml_model_start(model, op_new(mailbox));
    ready = await(mailbox, rest);
    CHECK(ready->code == PAML_OK);
    op_free(ready);
    CHECK(paml_model_status(model, NULL) == PAML_STATUS_READY);
    return model;
}

static inline struct paml_model *
echo_model(struct paml_echo *echo, int instances,
           const struct paml_queue_limits *limits, struct paml_mailbox *mailbox,
           struct paml_op **rest)
{
    static const DLDevice cpu = {kDLCPU, 0};
    struct paml_model_options options = {.name = "echo",
                                         .load = {.options = echo},
                                         .devices = &cpu,
                                         .n_devices = 1,
                                         .instances = instances,
                                         .threads = 1,
                                         .spin_ns = 20000,
                                         .limits = *limits};
    return model_of(&options, mailbox, rest);
}

static inline void
close_model(struct paml_model *model, struct paml_mailbox *mailbox,
            struct paml_op **rest)
{
    struct paml_op *closed = op_new(mailbox);

    paml_model_close(model, true, closed);
    CHECK(await(mailbox, rest) == closed);
    op_free(closed);
    CHECK(paml_model_status(model, NULL) == PAML_STATUS_CLOSED);
    paml_model_unref(model);
    CHECK(paml_threads_join(paml_now_ns() + 30 * PAML_SECOND));
}

#endif
