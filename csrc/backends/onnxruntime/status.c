#include "status.h"

#include <string.h>

static int
says(const char *message, const char *const *phrases)
{
    for (; *phrases != NULL; phrases++) {
        if (strstr(message, *phrases) != NULL) {
            return 1;
        }
    }
    return 0;
}

int
ort_fail(OrtStatus *status, int code, struct paml_error *err)
{
    static const char *const of_memory[] = {"Failed to allocate memory", "bad_alloc",
                                            "out of memory", NULL};
    static const char *const of_inputs[] = {
        "Got invalid dimensions for input", "Invalid rank for input",
        "Unexpected input data type", "Missing Input", NULL};
    const char *message = ort.GetErrorMessage(status);
    int length = (int)strlen(message);

    if (says(message, of_memory)) {
        code = PAML_ERR_MEMORY;
    } else if (code == PAML_ERR_BACKEND &&
               ort.GetErrorCode(status) == ORT_INVALID_ARGUMENT &&
               says(message, of_inputs)) {
        code = PAML_ERR_INPUT;
    }
    while (length > 0 && (message[length - 1] == '\n' || message[length - 1] == ' ')) {
        length--;
    }
    paml_fail(err, code, "%.*s", length, message);
    ort.ReleaseStatus(status);
    return code;
}

void
ort_ignore(OrtStatus *status)
{
    if (status != NULL) {
        ort.ReleaseStatus(status);
    }
}
