/* Baseline for the service's throughput: librdkafka's batch call on an application queue.
 *
 *   bare-loop load BOOTSTRAP TOPIC COUNT VALUE_BYTES KEYS SPREAD [REGIONS]
 *       fills a topic (load.c)
 *   bare-loop read BOOTSTRAP TOPIC PARTITIONS COUNT [KEY=VALUE]...
 *       reads it with these librdkafka keys and discards the records
 *   bare-loop relay BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT [KEY=VALUE]... [-- [KEY=VALUE]...]
 *       reads it and produces the records to another topic; the keys after `--` are the producer's (relay.c)
 *   bare-loop create BOOTSTRAP TOPIC PARTITIONS | delete BOOTSTRAP TOPIC | ends BOOTSTRAP TOPIC PARTITIONS
 *       creates or deletes a topic, or prints the end offsets of its partitions (topics.c)
 *
 * `read` and `relay` print one line of JSON: records and bytes, and the time and CPU used. `read` counts from the end of
 * the first batch to the end of the last, `relay` from the first record to the last acknowledgement. */
#include "bare_loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

void die(const char *what, const char *why) {
        fprintf(stderr, "bare-loop: %s: %s\n", what, why);
        exit(1);
}

void set(rd_kafka_conf_t *conf, const char *key, const char *value) {
        char why[256];
        if (rd_kafka_conf_set(conf, key, value, why, sizeof why) !=
            RD_KAFKA_CONF_OK)
                die(key, why);
}

void set_argument(rd_kafka_conf_t *conf, char *argument) {
        char *equals = strchr(argument, '=');
        if (!equals)
                die(argument, "not KEY=VALUE");
        *equals = 0;
        set(conf, argument, equals + 1);
}

rd_kafka_t *client(rd_kafka_type_t type, rd_kafka_conf_t *conf) {
        char why[256];
        rd_kafka_t *rk = rd_kafka_new(type, conf, why, sizeof why);
        if (!rk)
                die("client", why);
        return rk;
}

double wall(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec / 1e9;
}

double cpu(void) {
        struct rusage used;
        getrusage(RUSAGE_SELF, &used);
        return used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6 +
               used.ru_stime.tv_sec + used.ru_stime.tv_usec / 1e6;
}

static long peak_kib(void) {
        struct rusage used;
        getrusage(RUSAGE_SELF, &used);
        return used.ru_maxrss;
}

void print_result(long records, long bytes, double seconds, double cpu_seconds) {
        printf("{\"records\": %ld, \"bytes\": %ld, \"seconds\": %.6f, "
               "\"cpu_seconds\": %.6f, \"peak_kib\": %ld}\n",
               records, bytes, seconds, cpu_seconds, peak_kib());
        fflush(stdout);
}

rd_kafka_t *reader(const char *bootstrap, int count, char **keys) {
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", bootstrap);
        set(conf, "group.id", "bare-loop");
        set(conf, "enable.auto.commit", "false");
        for (int n = 0; n < count; n++)
                set_argument(conf, keys[n]);
        return client(RD_KAFKA_CONSUMER, conf);
}

rd_kafka_queue_t *assign_all(rd_kafka_t *rk, const char *topic, int partitions) {
        rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
        rd_kafka_topic_partition_list_t *list =
            rd_kafka_topic_partition_list_new(partitions);
        for (int p = 0; p < partitions; p++) {
                rd_kafka_queue_t *of = rd_kafka_queue_get_partition(rk, topic, p);
                rd_kafka_queue_forward(of, queue);
                rd_kafka_queue_destroy(of);
                rd_kafka_topic_partition_list_add(list, topic, p)->offset =
                    RD_KAFKA_OFFSET_BEGINNING;
        }
        rd_kafka_resp_err_t err = rd_kafka_assign(rk, list);
        rd_kafka_topic_partition_list_destroy(list);
        if (err)
                die("assign", rd_kafka_err2str(err));
        return queue;
}

long take(rd_kafka_t *rk, rd_kafka_queue_t *queue, rd_kafka_message_t **batch) {
        ssize_t taken = rd_kafka_consume_batch_queue(queue, 0, batch, BATCH);
        if (taken <= 0)
                taken = rd_kafka_consume_batch_queue(queue, 100, batch, 1);
        if (taken <= 0) {
                rd_kafka_poll(rk, 0);
                return 0;
        }
        return taken;
}

static int read_all(int argc, char **args) {
        if (argc < 4)
                die("usage", "read BOOTSTRAP TOPIC PARTITIONS COUNT [KEY=VALUE]...");
        long count     = atol(args[3]);
        rd_kafka_t *rk = reader(args[0], argc - 4, args + 4);
        rd_kafka_queue_t *queue = assign_all(rk, args[1], atoi(args[2]));
        static rd_kafka_message_t *batch[BATCH];
        double started = 0, cpu_started = 0;
        long seen = 0, first = 0, bytes = 0;
        while (seen < count) {
                long taken = take(rk, queue, batch);
                for (long n = 0; n < taken; n++) {
                        if (!batch[n]->err) {
                                seen++;
                                bytes += (long)batch[n]->len;
                        }
                        rd_kafka_message_destroy(batch[n]);
                }
                if (taken && !started) {
                        started     = wall();
                        cpu_started = cpu();
                        first       = seen;
                }
        }
        print_result(seen - first, bytes, wall() - started, cpu() - cpu_started);
        /* Nothing is committed, so the process can exit without cleanup. */
        _Exit(0);
}

int main(int argc, char **argv) {
        static const struct {
                const char *name;
                int (*run)(int argc, char **args);
        } modes[] = {{"load", load},           {"read", read_all},
                     {"relay", relay},         {"create", create_topic},
                     {"delete", delete_topic}, {"ends", print_ends}};
        for (size_t n = 0; argc > 1 && n < sizeof modes / sizeof *modes; n++)
                if (!strcmp(argv[1], modes[n].name))
                        return modes[n].run(argc - 2, argv + 2);
        die("usage", "load | read | relay | create | delete | ends, and their arguments");
}
