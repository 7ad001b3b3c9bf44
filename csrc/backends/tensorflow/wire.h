/* The protobuf wire format, read: field after field of a message that may be damaged.
 * Nothing outside [at, end) is ever looked at.
 */
#ifndef PAML_TF_WIRE_H
#define PAML_TF_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that somebody else owns: a message, or a string. */
struct wire {
    const char *at, *end;
};

struct wire_field {
    uint32_t number;
    bool is_bytes;
    uint64_t varint;   /* where !is_bytes; fixed-size numbers too, as they are */
    struct wire bytes; /* where is_bytes */
};

/* Reads the next field. 1: there was one; 0: the message has ended; -1: it is damaged.
 */
int wire_next(struct wire *message, struct wire_field *field);

static inline size_t
wire_size(struct wire bytes)
{
    return (size_t)(bytes.end - bytes.at);
}

bool wire_equals(struct wire bytes, const char *text);
/* As strcmp. */
int wire_compare(struct wire a, struct wire b);

#endif
