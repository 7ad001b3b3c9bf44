#include "op.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

void
paml_op_init(struct paml_op *op, struct paml_mailbox *mailbox)
{
    memset(op, 0, offsetof(struct paml_op, outputs));
    atomic_init(&op->state, PAML_OP_NEW);
    atomic_init(&op->given_up, false);
    atomic_init(&op->runner, NULL);
    op->mailbox = mailbox;
    op->rows = 1;
    memset(&op->message, 0, sizeof(*op) - offsetof(struct paml_op, message));
    paml_outputs_init(&op->outputs);
}

void
paml_op_fail(struct paml_op *op, int code, const char *message)
{
    op->code = code;
    free(op->message);
    op->message = message != NULL ? strdup(message) : NULL;
}

void
paml_op_clear(struct paml_op *op)
{
    paml_outputs_clear(&op->outputs);
    free(op->message);
    op->message = NULL;
    if (op->session != NULL) {
        paml_session_unref(op->session);
        op->session = NULL;
    }
}
