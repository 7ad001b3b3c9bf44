/* What went wrong, in C: a code and a message that the caller owns.
 *
 * Owner: whoever declares the struct. A function that fails fills it once; nobody
 * frees it, it has no pointers. Messages are meant for people and may hold bytes that
 * are not UTF-8 (frameworks do that); the Python side decodes them leniently.
 */
#ifndef PAML_ERROR_H
#define PAML_ERROR_H

#include <stdarg.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Part of the backend ABI: append only. */
enum paml_code {
    PAML_OK = 0,
    PAML_ERR_INPUT,    /* the inputs don't fit the signature      -> InputError */
    PAML_ERR_BACKEND,  /* the framework failed in a run           -> BackendError */
    PAML_ERR_MEMORY,   /* host or device memory ran out           -> OutOfMemory */
    PAML_ERR_LOAD,     /* file, program or instance can't be used -> LoadError */
    PAML_ERR_DEADLINE, /* timeout= passed                         -> DeadlineExceeded */
    PAML_ERR_QUEUE,    /* the bound was reached                   -> QueueFull */
    PAML_ERR_CLOSED,   /* close() came first                      -> ModelClosed */
    PAML_ERR_PYTHON,   /* outputs[0] is the exception object that was raised */
    PAML_ERR_DEVICE,   /* it is lost, and every later run with it -> BackendError */
};

#define PAML_MESSAGE_SIZE 1024

struct paml_error {
    int code; /* enum paml_code */
    char message[PAML_MESSAGE_SIZE];
};

/* Fills err and returns its code, so that `return paml_fail(err, …)` reads well. */
__attribute__((format(printf, 3, 4))) static inline int
paml_fail(struct paml_error *err, int code, const char *format, ...)
{
    va_list arguments;

    err->code = code;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof(err->message), format, arguments);
    va_end(arguments);
    return code;
}

#ifdef __cplusplus
}
#endif
#endif
