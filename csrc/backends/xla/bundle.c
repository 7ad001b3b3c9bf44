/* Reads a manifest: lines of words, names in them percent-encoded.
 *
 *     pyasyncml-xla 1
 *     entry forward
 *     platform cpu
 *     buckets 3 1 8 32
 *     weights 1              each an array line
 *     array float32 1 2 10 20
 *     state                  a structure
 *     none
 *     inputs 1               each a name and a structure
 *     input x
 *     array float32 1 2 -1 10
 *     outputs                a structure
 *     dict 1
 *     key y
 *     array float32 1 2 -1 20
 *
 * An array is its dtype, whether it is kept, its rank and its sizes.
 */
#include "bundle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "value.h"

#define FORMAT 1
#define MAX_DEPTH 32
#define MOST_ELEMENTS ((int64_t)1 << 40)

struct parser {
    char *at, *end; /* of a copy, which is written to */
    char *words;    /* of the line that is read: the next one */
    int line;
    struct paml_xla_node *node;
    struct paml_xla_array *array;
    struct paml_xla_argument *argument;
    int64_t *number;
    struct paml_error *err;
};

static int
malformed(const struct parser *parser, const char *expected)
{
    return paml_fail(parser->err, PAML_ERR_LOAD,
                     "the bundle is damaged: line %d of its manifest: expected %s",
                     parser->line, expected);
}

/* The next word of the line, or NULL. */
static char *
next_word(struct parser *parser)
{
    char *word = parser->words, *space;

    if (word == NULL || *word == '\0') {
        return NULL;
    }
    space = strchr(word, ' ');
    if (space != NULL) {
        *space = '\0';
        parser->words = space + 1;
    } else {
        parser->words = NULL;
    }
    return word;
}

/* Goes to the next line; returns its first word, "" where there is none. */
static const char *
next_line(struct parser *parser)
{
    char *begin = parser->at, *newline;
    const char *word;

    parser->line++;
    newline = memchr(begin, '\n', (size_t)(parser->end - begin));
    if (newline == NULL) {
        parser->words = NULL;
        return "";
    }
    *newline = '\0';
    parser->at = newline + 1;
    parser->words = begin;
    word = next_word(parser);
    return word != NULL ? word : "";
}

/* A line with this first word. */
static int
expect_line(struct parser *parser, const char *first)
{
    return strcmp(next_line(parser), first) == 0 ? PAML_OK : malformed(parser, first);
}

static int
read_number(struct parser *parser, int64_t least, int64_t most, int64_t *number)
{
    char *word = next_word(parser), *end;

    if (word == NULL) {
        return malformed(parser, "a number");
    }
    errno = 0;
    *number = strtoll(word, &end, 10);
    if (errno != 0 || end == word || *end != '\0' || *number < least ||
        *number > most) {
        return malformed(parser, "a number within its bounds");
    }
    return PAML_OK;
}

static int
hex_digit(char digit)
{
    return digit >= '0' && digit <= '9'   ? digit - '0'
           : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                          : -1;
}

/* A percent-encoded word, decoded in place. */
static int
read_name(struct parser *parser, const char **name)
{
    char *word = next_word(parser), *to = word;

    if (word == NULL) {
        *name = ""; /* the empty name */
        return PAML_OK;
    }
    *name = word;
    for (const char *from = word; *from != '\0'; to++) {
        if (*from != '%') {
            *to = *from++;
        } else if (hex_digit(from[1]) >= 0 && hex_digit(from[2]) >= 0 &&
                   hex_digit(from[1]) + hex_digit(from[2]) > 0) {
            *to = (char)(hex_digit(from[1]) * 16 + hex_digit(from[2]));
            from += 3;
        } else {
            return malformed(parser, "a percent-encoded name");
        }
    }
    *to = '\0';
    return PAML_OK;
}

/* The rest of an array's line. */
static int
read_array(struct parser *parser, bool may_have_batch)
{
    struct paml_xla_array *array = parser->array;
    const char *dtype = next_word(parser);
    int64_t kept, ndim, elements = 1;

    array->dtype = dtype != NULL ? paml_xla_dtype_find(dtype) : NULL;
    if (array->dtype == NULL) {
        return malformed(parser, "a dtype");
    }
    if (read_number(parser, 0, 1, &kept) != PAML_OK ||
        read_number(parser, 0, PAML_MAX_RANK, &ndim) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    array->kept = kept != 0;
    array->ndim = (int32_t)ndim;
    array->shape = parser->number;
    for (int32_t i = 0; i < array->ndim; i++) {
        if (read_number(parser, may_have_batch && i == 0 ? PAML_XLA_BATCH : 0,
                        MOST_ELEMENTS, parser->number) != PAML_OK) {
            return PAML_ERR_LOAD;
        }
        elements *= *parser->number > 0 ? *parser->number : 1;
        if (elements > MOST_ELEMENTS) {
            return malformed(parser, "an array of a reasonable size");
        }
        parser->number++;
    }
    parser->array++;
    return PAML_OK;
}

static int
read_node(struct parser *parser, int depth, bool may_have_batch)
{
    static const struct {
        const char *word;
        uint32_t kind;
    } kinds[] = {{"array", PAML_TENSOR},
                 {"tuple", PAML_TUPLE},
                 {"list", PAML_LIST},
                 {"dict", PAML_DICT},
                 {"none", PAML_NONE}};
    struct paml_xla_node *node = parser->node++;
    const char *word = next_line(parser);
    int64_t count = 0;
    size_t i = 0;

    while (i < 5 && strcmp(kinds[i].word, word) != 0) {
        i++;
    }
    if (i == 5 || depth > MAX_DEPTH) {
        return malformed(parser, "a structure");
    }
    node->kind = kinds[i].kind;
    if (node->kind == PAML_TENSOR) {
        node->array = parser->array;
        return read_array(parser, may_have_batch);
    }
    if (node->kind != PAML_NONE &&
        read_number(parser, 0, parser->end - parser->at, &count) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    node->count = (uint32_t)count;
    for (int64_t k = 0; k < count; k++) {
        const char *key = NULL;

        if (node->kind == PAML_DICT && (expect_line(parser, "key") != PAML_OK ||
                                        read_name(parser, &key) != PAML_OK)) {
            return PAML_ERR_LOAD;
        }
        parser->node->key = key;
        if (read_node(parser, depth + 1, may_have_batch) != PAML_OK) {
            return PAML_ERR_LOAD;
        }
    }
    return PAML_OK;
}

/* A structure; where it and its arrays lie. */
static int
read_tree(struct parser *parser, bool may_have_batch, const struct paml_xla_node **tree,
          uint32_t *n_nodes)
{
    const struct paml_xla_node *begin = parser->node;
    int code = read_node(parser, 0, may_have_batch);

    *tree = begin;
    *n_nodes = (uint32_t)(parser->node - begin);
    return code;
}

static int
read_head(struct parser *parser, struct paml_xla_bundle *bundle)
{
    int64_t format, count, last = 0, *buckets;

    if (expect_line(parser, "pyasyncml-xla") != PAML_OK ||
        read_number(parser, 1, INT32_MAX, &format) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    if (format != FORMAT) {
        return paml_fail(parser->err, PAML_ERR_LOAD,
                         "the bundle has format %d; this version reads format %d",
                         (int)format, FORMAT);
    }
    if (expect_line(parser, "entry") != PAML_OK ||
        read_name(parser, &bundle->entry) != PAML_OK ||
        expect_line(parser, "platform") != PAML_OK ||
        read_name(parser, &bundle->platform) != PAML_OK ||
        expect_line(parser, "buckets") != PAML_OK ||
        read_number(parser, 0, 1024, &count) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    bundle->n_buckets = (uint32_t)count;
    bundle->buckets = buckets = parser->number;
    parser->number += count;
    for (int64_t i = 0; i < count; i++) {
        if (read_number(parser, last + 1, INT32_MAX, &buckets[i]) != PAML_OK) {
            return PAML_ERR_LOAD;
        }
        last = buckets[i];
    }
    return PAML_OK;
}

static int
read_body(struct parser *parser, struct paml_xla_bundle *bundle)
{
    const bool batches = bundle->n_buckets > 0;
    int64_t count;

    if (expect_line(parser, "weights") != PAML_OK ||
        read_number(parser, 0, parser->end - parser->at, &count) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    bundle->n_weights = (uint32_t)count;
    bundle->weights = parser->array;
    for (int64_t i = 0; i < count; i++) {
        if (expect_line(parser, "array") != PAML_OK ||
            read_array(parser, false) != PAML_OK) {
            return PAML_ERR_LOAD;
        }
    }
    bundle->state = parser->array;
    if (expect_line(parser, "state") != PAML_OK ||
        read_tree(parser, false, &bundle->state_tree, &bundle->n_state_nodes) !=
            PAML_OK) {
        return PAML_ERR_LOAD;
    }
    bundle->inputs = parser->array;
    bundle->n_state = (uint32_t)(bundle->inputs - bundle->state);
    if (expect_line(parser, "inputs") != PAML_OK ||
        read_number(parser, 0, parser->end - parser->at, &count) != PAML_OK) {
        return PAML_ERR_LOAD;
    }
    bundle->n_arguments = (uint32_t)count;
    bundle->arguments = parser->argument;
    for (int64_t i = 0; i < count; i++) {
        struct paml_xla_argument *argument = parser->argument++;

        if (expect_line(parser, "input") != PAML_OK ||
            read_name(parser, &argument->name) != PAML_OK ||
            read_tree(parser, batches, &argument->tree, &argument->n_nodes) !=
                PAML_OK) {
            return PAML_ERR_LOAD;
        }
    }
    bundle->outputs = parser->array;
    bundle->n_inputs = (uint32_t)(bundle->outputs - bundle->inputs);
    if (expect_line(parser, "outputs") != PAML_OK ||
        read_tree(parser, batches, &bundle->output_tree, &bundle->n_output_nodes) !=
            PAML_OK) {
        return PAML_ERR_LOAD;
    }
    bundle->n_outputs = (uint32_t)(parser->array - bundle->outputs);
    return PAML_OK;
}

static int
parse(struct paml_xla_bundle *bundle, const unsigned char *text, size_t size,
      struct paml_error *err)
{
    struct parser parser = {.err = err};
    size_t lines = 2, words = 2; /* what a damaged one may ask for besides */

    for (size_t i = 0; i < size; i++) {
        lines += text[i] == '\n';
        words += text[i] == ' ' || text[i] == '\n';
    }
    /* Each line is a node, an array or an argument at most, each word a number; buckets
       are counted before they are read. */
    bundle->storage[0] = parser.at = malloc(size + 1);
    bundle->storage[1] = parser.node = calloc(lines, sizeof(*parser.node));
    bundle->storage[2] = parser.array = calloc(lines, sizeof(*parser.array));
    bundle->storage[3] = parser.argument = calloc(lines, sizeof(*parser.argument));
    bundle->storage[4] = parser.number = calloc(words + 1024, sizeof(*parser.number));
    for (int i = 0; i < 5; i++) {
        if (bundle->storage[i] == NULL) {
            return paml_fail(err, PAML_ERR_MEMORY, "no memory for the manifest");
        }
    }
    memcpy(parser.at, text, size);
    parser.at[size] = '\0';
    parser.end = parser.at + size;
    if (read_head(&parser, bundle) != PAML_OK) {
        return err->code;
    }
    return read_body(&parser, bundle);
}

int
paml_xla_bundle_open(struct paml_xla_bundle *bundle, const char *path,
                     struct paml_error *err)
{
    const unsigned char *text;
    size_t size;
    int code;

    memset(bundle, 0, sizeof(*bundle));
    code = paml_xla_archive_open(&bundle->archive, path, err);
    if (code == PAML_OK) {
        code = paml_xla_archive_find(&bundle->archive, "manifest", &text, &size, err);
    }
    if (code == PAML_OK) {
        code = parse(bundle, text, size, err);
    }
    if (code != PAML_OK) {
        paml_xla_bundle_close(bundle);
    }
    return code;
}

void
paml_xla_bundle_close(struct paml_xla_bundle *bundle)
{
    for (int i = 0; i < 5; i++) {
        free(bundle->storage[i]);
    }
    paml_xla_archive_close(&bundle->archive);
    memset(bundle, 0, sizeof(*bundle));
}

int
paml_xla_bundle_member(const struct paml_xla_bundle *bundle, const char *folder,
                       uint32_t index, const unsigned char **data, size_t *size,
                       struct paml_error *err)
{
    char name[64];

    snprintf(name, sizeof(name), "%s/%u", folder, (unsigned)index);
    return paml_xla_archive_find(&bundle->archive, name, data, size, err);
}
