/* A listening socket on the sandbox's own loopback, handed to the host, which alone accepts on it. Nothing of it stays here: the
 * workload can connect to the port, and that is the only way out of its network namespace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "box.h"

static int send_descriptor(int to, const void *data, size_t length, int descriptor) {
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary;
    memset(&ancillary, 0, sizeof ancillary);
    struct iovec vector = {(void *)data, length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    return sendmsg(to, &message, MSG_NOSIGNAL) == (ssize_t)length ? 0 : -1;
}

static int listening(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), saved;
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128)) {
        saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* Over the host's own socket where that is one (the reply carries the descriptor), else over a socket that the host shows us at
 * a path and takes away again before the first command. */
void listen_hand_over(uint32_t id, const char *payload, size_t length, const struct box *box, int quiet) {
    struct listen_request request;
    if (length <= sizeof request) {
        reply_errno(id, EPROTO);
        return;
    }
    memcpy(&request, payload, sizeof request);
    const char *path = payload + sizeof request;
    int fd = listening((uint16_t)request.port), error = 0;
    if (fd < 0) {
        reply_errno(id, errno);
        return;
    }
    if (*path) {
        struct sockaddr_un place = {.sun_family = AF_UNIX};
        int channel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        strncpy(place.sun_path, path, sizeof place.sun_path - 1);
        if (channel < 0 || connect(channel, (struct sockaddr *)&place, sizeof place) || send_descriptor(channel, "l", 1, fd))
            error = errno;
        if (channel >= 0)
            close(channel);
        reply_errno(id, error);
    } else if (!quiet) {
        reply_errno(id, EAGAIN); /* other answers are under way, and the descriptor must not overtake them */
    } else {
        struct {
            struct frame header;
            int32_t zero;
        } message = {{sizeof(int32_t), id, F_REPLY}, 0};
        if (send_descriptor(box->socket_out, &message, sizeof message, fd))
            reply_errno(id, errno);
    }
    close(fd);
}
