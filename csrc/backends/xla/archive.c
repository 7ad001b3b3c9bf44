#include "archive.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Sizes of the fixed parts of the format (PKWARE's APPNOTE, 4.3). */
#define END_SIZE 22
#define ENTRY_SIZE 46
#define LOCAL_SIZE 30

static uint32_t
get16(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t
get32(const unsigned char *at)
{
    return get16(at) | get16(at + 2) << 16;
}

/* The CRC-32 of zip, a byte at a time. */
static uint32_t
crc32_of(const unsigned char *data, size_t size)
{
    uint32_t table[256], crc = 0xffffffffu;

    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) {
            value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
        }
        table[i] = value;
    }
    for (size_t i = 0; i < size; i++) {
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
    }
    return ~crc;
}

static int
damaged(struct paml_error *err, const char *what)
{
    return paml_fail(err, PAML_ERR_LOAD, "the bundle is damaged: %s", what);
}

static int
read_file(struct paml_xla_archive *archive, const char *path, struct paml_error *err)
{
    int file = open(path, O_RDONLY | O_CLOEXEC), code = PAML_OK;
    struct stat status;
    size_t done = 0;
    ssize_t got = 1;

    if (file < 0 || fstat(file, &status) < 0) {
        code = paml_fail(err, PAML_ERR_LOAD, "%.800s: %s", path, strerror(errno));
        goto done;
    }
    archive->size = (size_t)status.st_size;
    archive->data = aligned_alloc(64, (archive->size + 64) / 64 * 64);
    if (archive->data == NULL) {
        code = paml_fail(err, PAML_ERR_MEMORY, "no memory for the bundle");
        goto done;
    }
    while (done < archive->size && got != 0) {
        got = read(file, archive->data + done, archive->size - done);
        if (got < 0 && errno != EINTR) {
            code = paml_fail(err, PAML_ERR_LOAD, "%.800s: %s", path, strerror(errno));
            goto done;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    archive->size = done;

done:
    if (file >= 0) {
        close(file);
    }
    return code;
}

/* Finds the list of members, at the file's end. */
static int
find_directory(struct paml_xla_archive *archive, struct paml_error *err)
{
    const unsigned char *end;

    if (archive->size < END_SIZE) {
        return damaged(err, "it is no zip archive");
    }
    end = archive->data + archive->size - END_SIZE; /* ours have no comment */
    if (memcmp(end, "PK\5\6", 4) != 0) {
        return damaged(err, "the archive's end is missing");
    }
    archive->n_members = get16(end + 10);
    archive->directory_size = get32(end + 12);
    archive->directory = get32(end + 16);
    if (archive->directory > archive->size ||
        archive->directory_size > archive->size - archive->directory) {
        return damaged(err, "its list of members is outside the file");
    }
    return PAML_OK;
}

int
paml_xla_archive_open(struct paml_xla_archive *archive, const char *path,
                      struct paml_error *err)
{
    int code;

    memset(archive, 0, sizeof(*archive));
    code = read_file(archive, path, err);
    if (code == PAML_OK) {
        code = find_directory(archive, err);
    }
    if (code != PAML_OK) {
        paml_xla_archive_close(archive);
    }
    return code;
}

void
paml_xla_archive_close(struct paml_xla_archive *archive)
{
    free(archive->data);
    memset(archive, 0, sizeof(*archive));
}

/* A member's content from its entry in the list. */
static int
read_member(const struct paml_xla_archive *archive, const unsigned char *entry,
            const unsigned char **data, size_t *size, struct paml_error *err)
{
    size_t local = get32(entry + 42), begin;

    *size = get32(entry + 24);
    if (get16(entry + 10) != 0 || get32(entry + 20) != *size) {
        return damaged(err, "a member is compressed");
    }
    if (local > archive->size || archive->size - local < LOCAL_SIZE ||
        memcmp(archive->data + local, "PK\3\4", 4) != 0) {
        return damaged(err, "a member is outside the file");
    }
    begin = local + LOCAL_SIZE + get16(archive->data + local + 26) +
            get16(archive->data + local + 28);
    if (begin > archive->size || *size > archive->size - begin) {
        return damaged(err, "a member is outside the file");
    }
    *data = archive->data + begin;
    if (crc32_of(*data, *size) != get32(entry + 16)) {
        return damaged(err, "the checksum of a member doesn't match");
    }
    return PAML_OK;
}

int
paml_xla_archive_find(const struct paml_xla_archive *archive, const char *name,
                      const unsigned char **data, size_t *size, struct paml_error *err)
{
    size_t at = archive->directory, end = at + archive->directory_size;
    size_t length = strlen(name);

    for (uint32_t i = 0; i < archive->n_members; i++) {
        const unsigned char *entry = archive->data + at;
        size_t name_size;

        if (end - at < ENTRY_SIZE || memcmp(entry, "PK\1\2", 4) != 0) {
            return damaged(err, "its list of members is cut short");
        }
        name_size = get16(entry + 28);
        if (end - at - ENTRY_SIZE < name_size) {
            return damaged(err, "its list of members is cut short");
        }
        if (name_size == length && memcmp(entry + ENTRY_SIZE, name, length) == 0) {
            return read_member(archive, entry, data, size, err);
        }
        at += ENTRY_SIZE + name_size + get16(entry + 30) + get16(entry + 32);
        if (at > end) {
            return damaged(err, "its list of members is cut short");
        }
    }
    return paml_fail(err, PAML_ERR_LOAD, "the bundle has no member %.200s", name);
}
