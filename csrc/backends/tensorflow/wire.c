#include "wire.h"

#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static int
read_varint(struct wire *message, uint64_t *number)
{
    *number = 0;
    for (int shift = 0; shift < 64 && message->at < message->end; shift += 7) {
        uint8_t byte = (uint8_t)*message->at++;
        *number |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return 0;
        }
    }
    return -1;
}

int
wire_next(struct wire *message, struct wire_field *field)
{
    uint64_t key, size;
    size_t width;

    if (message->at >= message->end) {
        return 0;
    }
    if (read_varint(message, &key) < 0 || key >> 3 == 0 || key >> 3 > UINT32_MAX) {
        return -1;
    }
    memset(field, 0, sizeof(*field));
    field->number = (uint32_t)(key >> 3);
    switch (key & 7) {
    case VARINT:
        return read_varint(message, &field->varint) < 0 ? -1 : 1;
    case FIXED64:
    case FIXED32:
        width = (key & 7) == FIXED64 ? 8 : 4;
        if (wire_size(*message) < width) {
            return -1;
        }
        memcpy(&field->varint, message->at, width);
        message->at += width;
        return 1;
    case BYTES:
        if (read_varint(message, &size) < 0 || size > wire_size(*message)) {
            return -1;
        }
        field->is_bytes = true;
        field->bytes.at = message->at;
        field->bytes.end = message->at += size;
        return 1;
    default:
        return -1;
    }
}

bool
wire_equals(struct wire bytes, const char *text)
{
    size_t size = strlen(text);

    return wire_size(bytes) == size && memcmp(bytes.at, text, size) == 0;
}

int
wire_compare(struct wire a, struct wire b)
{
    size_t common = wire_size(a) < wire_size(b) ? wire_size(a) : wire_size(b);
    int order = common > 0 ? memcmp(a.at, b.at, common) : 0;

    return order != 0                    ? order
           : wire_size(a) < wire_size(b) ? -1
                                         : wire_size(a) > wire_size(b);
}
