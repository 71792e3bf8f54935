/* Export: what the upper layer (or, without one, the merged view) of a frozen sandbox holds at some paths, as a stream of entries.
 *
 * Only PID 1 reads; nothing else lives. Names come in sorted order, so the same tree gives the same bytes.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "box.h"

struct export {
    uint32_t id;
    int upper; /* -1: merged view */
    uint64_t bytes_left;
    uint32_t files_left;
    int64_t looks_left; /* names of the merged view that may still be compared with the upper layer */
    int hidden;         /* opaque directories above the current one */
    char *buffer;
    size_t used;
    int depth;
    char path[PATH_MAX]; /* of the entry at hand, one for all levels */
};

#define EXPORT_CHUNK (256 * 1024)
#define MAX_DEPTH 200 /* deeper trees are traps for whoever walks or removes them later */

static void export_flush(struct export *e) {
    if (e->used)
        reply_blocking(e->id, F_CHUNK, NULL, 0, e->buffer, e->used);
    e->used = 0;
}

static void export_bytes(struct export *e, const void *data, size_t length) {
    while (length) {
        size_t n = EXPORT_CHUNK - e->used < length ? EXPORT_CHUNK - e->used : length;
        memcpy(e->buffer + e->used, data, n);
        e->used += n;
        data = (const char *)data + n;
        length -= n;
        if (e->used == EXPORT_CHUNK)
            export_flush(e);
    }
}

static int export_head(struct export *e, char type, const struct stat *st, int opaque, uint64_t size) {
    struct export_entry entry = {.type = (uint32_t)type, .mode = st->st_mode & 07777, .uid = st->st_uid, .gid = st->st_gid,
                                 .path_length = (uint32_t)strlen(e->path), .opaque = (uint32_t)opaque, .size = size,
                                 .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
    if (!e->files_left-- || size > e->bytes_left)
        return EFBIG;
    e->bytes_left -= size;
    export_bytes(e, &entry, sizeof entry);
    export_bytes(e, e->path, entry.path_length);
    return 0;
}

static int export_file(struct export *e, int parent, const char *name, const struct stat *st) {
    static char data[32768];
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = export_head(e, 'f', st, 0, (uint64_t)st->st_size);
    uint64_t left = (uint64_t)st->st_size;
    while (!error && left) {
        ssize_t n = read(fd, data, left < sizeof data ? left : sizeof data);
        if (n <= 0)
            error = n < 0 ? errno : EIO; /* frozen: a file cannot have become shorter */
        else {
            export_bytes(e, data, (size_t)n);
            left -= (uint64_t)n;
        }
    }
    close(fd);
    return error;
}

static int export_entry(struct export *e, int parent, const char *name);

/* A directory hides what lies below it in lower layers exactly when every name it shows comes from the upper layer and every
 * directory it shows hides what lies below it, too. Takes both descriptors. A tree too large to look through does not hide. */
static int shows_only_upper(struct export *e, int merged, int upper_directory) {
    DIR *directory = merged < 0 ? NULL : fdopendir(merged);
    struct dirent *item;
    struct stat st;
    int only = directory != NULL && upper_directory >= 0;
    while (only && (item = readdir(directory))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        only = e->looks_left-- > 0 && !fstatat(upper_directory, item->d_name, &st, AT_SYMLINK_NOFOLLOW);
        if (only && S_ISDIR(st.st_mode)) {
            int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
            only = shows_only_upper(e, openat(merged, item->d_name, flags), openat(upper_directory, item->d_name, flags));
        }
    }
    if (directory)
        closedir(directory);
    if (upper_directory >= 0)
        close(upper_directory);
    return only;
}

static int hides_lower(struct export *e, int upper_directory) {
    static char absolute[PATH_MAX + 1];
    if (e->upper < 0)
        return 1;
    snprintf(absolute, sizeof absolute, "/%s", e->path);
    int merged = open_below(root_fd(), absolute, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    return shows_only_upper(e, merged, openat(upper_directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int export_directory(struct export *e, int parent, const char *name, const struct stat *st) {
    if (e->depth == MAX_DEPTH)
        return ENAMETOOLONG;
    e->depth++;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = export_head(e, 'd', st, hides_lower(e, fd), 0);
    DIR *directory = fdopendir(fd);
    struct dirent *item;
    char **names = NULL;
    size_t count = 0, room = 0, length = strlen(e->path);
    while (!error && directory && (item = readdir(directory))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        if (count == room) {
            room = room ? room * 2 : 16;
            names = realloc(names, room * sizeof *names);
        }
        if (!names || !(names[count++] = strdup(item->d_name)))
            _exit(12);
        if (count > e->files_left)
            error = EFBIG;
    }
    if (count)
        qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        if (!error && length + strlen(names[i]) + 2 > sizeof e->path)
            error = ENAMETOOLONG;
        if (!error) {
            e->path[length] = '/';
            strcpy(e->path + length + 1, names[i]);
            error = export_entry(e, fd, names[i]);
            e->path[length] = 0;
        }
        free(names[i]);
    }
    free(names);
    if (directory)
        closedir(directory);
    e->depth--;
    return error;
}

static int export_link(struct export *e, int parent, const char *name, const struct stat *st) {
    static char target[PATH_MAX];
    ssize_t n = readlinkat(parent, name, target, sizeof target);
    if (n < 0)
        return errno;
    int error = export_head(e, 'l', st, 0, (uint64_t)n);
    if (!error)
        export_bytes(e, target, (size_t)n);
    return error;
}

static int export_entry(struct export *e, int parent, const char *name) {
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (S_ISDIR(st.st_mode))
        return export_directory(e, parent, name, &st);
    if (S_ISREG(st.st_mode))
        return export_file(e, parent, name, &st);
    if (S_ISLNK(st.st_mode))
        return export_link(e, parent, name, &st);
    int whiteout = S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0) && e->upper >= 0;
    return export_head(e, whiteout ? 'w' : 's', &st, 0, 0);
}

/* One asked path: its parents as plain directories, then itself with everything below. */
static int export_path(struct export *e, const char *asked) {
    struct stat st;
    int fd = e->upper >= 0 ? dup(e->upper) : open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
    char *path = e->path;
    size_t start = 0, length;
    while (*asked == '/')
        asked++;
    if (!*asked || strlen(asked) >= sizeof e->path - 2)
        error = EINVAL;
    strcpy(path, error ? "" : asked);
    for (length = strlen(path); length && path[length - 1] == '/';)
        path[--length] = 0;
    while (!error) {
        char *slash = strchr(path + start, '/');
        if (slash)
            *slash = 0;
        if (fstatat(fd, path + start, &st, AT_SYMLINK_NOFOLLOW)) {
            if (errno != ENOENT && errno != ENOTDIR)
                error = errno;
            else if (e->upper < 0) {
                memset(&st, 0, sizeof st);
                error = export_head(e, 'w', &st, 0, 0); /* gone, or never there: either way not there now */
            }
            break;
        }
        if (!slash || !S_ISDIR(st.st_mode)) { /* the end, or a parent that was replaced by something else: that is the change */
            error = export_entry(e, fd, path + start);
            break;
        }
        int below = openat(fd, path + start, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0) {
            error = errno;
            break;
        }
        error = export_head(e, 'd', &st, 0, 0); /* what a parent hides was not asked for */
        close(fd);
        fd = below;
        *slash = '/';
        start = (size_t)(slash - path) + 1;
    }
    close(fd);
    return error;
}

void files_export(uint32_t id, const char *payload, size_t length, const struct box *box) {
    struct export_request request;
    if (length <= sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    static struct export e;
    e = (struct export){.id = id, .upper = box->upper, .bytes_left = request.max_bytes, .files_left = request.max_files,
                       .looks_left = 4 * (int64_t)request.max_files + 1024};
    if (!(e.buffer = malloc(EXPORT_CHUNK)))
        _exit(12);
    int error = 0;
    for (const char *p = payload + sizeof request; !error && p < payload + length; p += strlen(p) + 1)
        error = export_path(&e, p);
    export_flush(&e);
    free(e.buffer);
    reply_errno(id, error);
}
