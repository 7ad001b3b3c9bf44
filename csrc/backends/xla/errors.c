/* The plugin's errors as the engine's. */
#include <string.h>

#include "client.h"

/* Thread: any. GIL: either way. */
int
paml_xla_report(const struct pjrt_api *api, struct pjrt_error *error, int code,
                const char *what, struct paml_error *err)
{
    PJRT_ARGS(error_message, message);
    PJRT_ARGS(error_get_code, get_code);
    PJRT_ARGS(error_destroy, destroy);
    struct pjrt_error *failed;
    int size;

    if (error == NULL) {
        return PAML_OK;
    }
    message.error = get_code.error = destroy.error = error;
    api->slots[PJRT_ERROR_MESSAGE](&message);
    failed = api->slots[PJRT_ERROR_GET_CODE](&get_code);
    if (failed != NULL) {
        PJRT_ARGS(error_destroy, second);
        second.error = failed;
        api->slots[PJRT_ERROR_DESTROY](&second);
    } else if (get_code.code == PJRT_RESOURCE_EXHAUSTED) {
        code = PAML_ERR_MEMORY;
    }
    size = message.message_size < 900 ? (int)message.message_size : 900;
    paml_fail(err, code, "%s: %.*s", what, size, message.message);
    api->slots[PJRT_ERROR_DESTROY](&destroy);
    return code;
}
