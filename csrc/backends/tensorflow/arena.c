#include "arena.h"

#include <stdlib.h>
#include <string.h>

/* What comes after it is as aligned as malloc's. */
struct block {
    _Alignas(max_align_t) struct block *next;
};

void *
paml_tf_arena_new(struct paml_tf_arena *arena, size_t count, size_t size)
{
    size_t bytes;
    struct block *block = NULL;

    if (!__builtin_mul_overflow(count, size, &bytes) &&
        !__builtin_add_overflow(bytes, sizeof(*block), &bytes)) {
        block = calloc(1, bytes);
    }
    if (block == NULL) {
        arena->failed = true;
        return NULL;
    }
    block->next = arena->blocks;
    arena->blocks = block;
    return block + 1;
}

char *
paml_tf_arena_text(struct paml_tf_arena *arena, const char *bytes, size_t size)
{
    char *text = paml_tf_arena_new(arena, size + 1, 1);

    if (text != NULL && size > 0) {
        memcpy(text, bytes, size);
    }
    return text;
}

void
paml_tf_arena_free(struct paml_tf_arena *arena)
{
    struct block *block;

    while ((block = arena->blocks) != NULL) {
        arena->blocks = block->next;
        free(block);
    }
}
