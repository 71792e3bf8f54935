/* What a command prints, kept up to a cap: the beginning and the end, whatever comes in between is counted only. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "box.h"

void stream_open(struct stream *s, int fd, uint32_t cap) {
    *s = (struct stream){.fd = fd, .cap = cap, .head = cap / 2};
    if (!(s->bytes = malloc(cap + 1u)))
        _exit(12);
}

void stream_close(struct stream *s) {
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

void stream_free(struct stream *s) {
    free(s->bytes);
    s->bytes = NULL;
    s->cap = s->head = 0;
    s->total = 0;
}

/* Where the next byte belongs and how many fit there; NULL when it is only to be counted. */
static char *place(struct stream *s, size_t *room) {
    if (s->total < s->cap) {
        *room = s->cap - (size_t)s->total;
        return s->bytes + s->total;
    }
    if (s->cap <= s->head)
        return NULL;
    size_t ring = s->cap - s->head, offset = (size_t)((s->total - s->head) % ring);
    *room = ring - offset;
    return s->bytes + s->head + offset;
}

/* Read once; 0 at end of file, negative when nothing is there. */
ssize_t stream_pull(struct stream *s, size_t limit) {
    static char dropped[65536];
    size_t room = sizeof dropped;
    char *at = place(s, &room);
    ssize_t n = read(s->fd, at ? at : dropped, room < limit ? room : limit);
    if (n > 0)
        s->total += (uint64_t)n;
    return n;
}

void stream_put(struct stream *s, const char *data, size_t length) {
    while (length) {
        size_t room = length;
        char *at = place(s, &room);
        if (room > length)
            room = length;
        if (at)
            memcpy(at, data, room);
        s->total += room;
        data += room;
        length -= room;
    }
}

/* The kept bytes in order; how many there are. */
uint32_t stream_copy(const struct stream *s, char *to) {
    if (s->total <= s->cap) {
        memcpy(to, s->bytes, (size_t)s->total);
        return (uint32_t)s->total;
    }
    size_t ring = s->cap - s->head, offset = ring ? (size_t)((s->total - s->head) % ring) : 0;
    memcpy(to, s->bytes, s->head);
    memcpy(to + s->head, s->bytes + s->head + offset, ring - offset);
    memcpy(to + s->cap - offset, s->bytes + s->head, offset);
    return s->cap;
}

/* Answer with what was printed; `err` may be a stream that was never opened. */
void reply_outcome(uint32_t id, struct exec_reply *outcome, const struct stream *output, const struct stream *err,
                   const struct rusage *usage) {
    if (usage)
        outcome->cpu_us = (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000 +
                          (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
    size_t kept = output->total < output->cap ? (size_t)output->total : output->cap;
    size_t more = err ? err->total < err->cap ? (size_t)err->total : err->cap : 0;
    char *body = malloc(kept + more + 1);
    if (!body)
        _exit(12);
    outcome->output_length = output->bytes ? stream_copy(output, body) : 0;
    outcome->output_head = output->head;
    outcome->output_total = output->total;
    if (err) {
        outcome->stderr_length = err->bytes ? stream_copy(err, body + kept) : 0;
        outcome->stderr_head = err->head;
        outcome->stderr_total = err->total;
    }
    reply(id, F_EXIT, outcome, sizeof *outcome, body, outcome->output_length + (size_t)outcome->stderr_length);
    free(body);
}
