/* Entry: which role this process plays. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "box.h"

int launcher_run(int control, enum map_mode mode, uint32_t shift, const char *scratch);

/* resident LEASE_S BUILD WORKDIR UID GID: PID 1 of a container, spoken to over its attached stdin and stdout. */
static int resident_over_stdio(char **argument) {
    const char *step = "";
    struct box box = {.socket_in = 0, .socket_out = 1, .upper = -1, .build = atoi(argument[1]),
                      .lease_s = (uint32_t)strtoul(argument[0], NULL, 10), .workdir = argument[2],
                      .workdir_uid = (uint32_t)strtoul(argument[3], NULL, 10),
                      .workdir_gid = (uint32_t)strtoul(argument[4], NULL, 10)};
    if (confine_resident(box.build, &step)) {
        perror(step);
        return 1;
    }
    resident_run(&box);
}

int main(int argc, char **argv) {
    if (argc == 7 && !strcmp(argv[1], "resident"))
        return resident_over_stdio(argv + 2);
    if (argc == 6 && !strcmp(argv[1], "launcher")) {
        static const char *const modes[] = {"root", "subordinate", "single"};
        for (int mode = 0; mode < 3; mode++)
            if (!strcmp(argv[3], modes[mode])) {
                int control = atoi(argv[2]);
                uint32_t shift = (uint32_t)strtoul(argv[4], NULL, 10);
                char *scratch = strdup(argv[5]);
                /* sandboxes show this memory as the command line of their PID 1: it must not name places of the host */
                memset(argv[0], 0, (size_t)(argv[5] + strlen(argv[5]) - argv[0]));
                strcpy(argv[0], "init");
                return launcher_run(control, (enum map_mode)mode, shift, scratch);
            }
    }
    fprintf(stderr, "gymsmith-box is started by gymsmith, not by hand (protocol %d)\n", PROTOCOL);
    return 2;
}
