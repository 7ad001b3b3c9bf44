#include "errors.h"

#include <string.h>

/* "Matrix size-incompatible: …\n\t [[{{node MatMul}}]]\n\t [[Call]]": one line, and
   only the innermost node. */
static void
copy_message(const char *from, char *to, size_t size)
{
    const char *nodes = strstr(from, "\n\t [["), *end;
    size_t length = nodes != NULL ? (size_t)(nodes - from) : strlen(from);
    size_t used = length < size - 1 ? length : size - 1;

    memcpy(to, from, used);
    if (nodes != NULL && (end = strchr(nodes + 1, '\n')) != NULL) {
        length = (size_t)(end - nodes);
    } else if (nodes != NULL) {
        length = strlen(nodes);
    } else {
        length = 0;
    }
    if (length > 2 && used + length < size) {
        to[used++] = ' ';
        memcpy(to + used, nodes + 3, length - 3);
        used += length - 3;
    }
    to[used] = '\0';
    for (char *c = to; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\t') {
            *c = ' ';
        }
    }
}

int
paml_tf_fail(const TF_Status *status, int code, const char *what,
             struct paml_error *err)
{
    char message[PAML_MESSAGE_SIZE - 200];

    copy_message(tf.Message(status), message, sizeof(message));
    if (tf.GetCode(status) == TF_RESOURCE_EXHAUSTED) {
        code = PAML_ERR_MEMORY;
    }
    return paml_fail(err, code, "%.160s%s%s", what, what[0] != '\0' ? ": " : "",
                     message);
}
