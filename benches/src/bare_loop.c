/* Baseline for the service's throughput: librdkafka's batch call on an application queue, discarding the records.
 *
 *   bare-loop load BOOTSTRAP TOPIC COUNT VALUE_BYTES KEYS [REGIONS]   fills a topic: uniformly random keys; a header
 *                                                                     `region` of so many values, or none
 *   bare-loop read BOOTSTRAP TOPIC PARTITIONS COUNT [KEY=VALUE]...   reads it with these librdkafka keys
 *
 * `read` prints one line of JSON: records and bytes from the first batch to the last, and the time and CPU used. */
#include "rdkafka.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define BATCH 1024

static void die(const char *what, const char *why) {
        fprintf(stderr, "bare-loop: %s: %s\n", what, why);
        exit(1);
}

static void set(rd_kafka_conf_t *conf, const char *key, const char *value) {
        char why[256];
        if (rd_kafka_conf_set(conf, key, value, why, sizeof why) !=
            RD_KAFKA_CONF_OK)
                die(key, why);
}

static rd_kafka_t *client(rd_kafka_type_t type, rd_kafka_conf_t *conf) {
        char why[256];
        rd_kafka_t *rk = rd_kafka_new(type, conf, why, sizeof why);
        if (!rk)
                die("client", why);
        return rk;
}

static double wall(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu(void) {
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

static long failed;

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *message,
                      void *opaque) {
        (void)rk;
        (void)opaque;
        if (message->err)
                failed++;
}

static int load(char **args) {
        const char *topic = args[1];
        long count        = atol(args[2]);
        size_t size       = (size_t)atol(args[3]);
        unsigned long keys = strtoul(args[4], NULL, 10);
        unsigned long regions = args[5] ? strtoul(args[5], NULL, 10) : 0;
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", args[0]);
        set(conf, "linger.ms", "20");
        set(conf, "batch.num.messages", "10000");
        set(conf, "queue.buffering.max.messages", "1000000");
        set(conf, "partitioner", "murmur2_random");
        rd_kafka_conf_set_dr_msg_cb(conf, delivered);
        rd_kafka_t *rk = client(RD_KAFKA_PRODUCER, conf);
        char *value    = malloc(size);
        memset(value, 'x', size);
        uint64_t state = 88172645463325252ull;
        for (long n = 0; n < count; n++) {
                char key[32];
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                int len = snprintf(key, sizeof key, "key-%08lu",
                                   (unsigned long)(state % keys));
                char region[32];
                int region_len = snprintf(region, sizeof region, "r%lu",
                                          regions ? n % regions : 0);
                rd_kafka_headers_t *headers = NULL;
                if (regions) {
                        headers = rd_kafka_headers_new(1);
                        rd_kafka_header_add(headers, "region", -1, region,
                                            region_len);
                }
                while (rd_kafka_producev(
                           rk, RD_KAFKA_V_TOPIC(topic),
                           RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                           RD_KAFKA_V_KEY(key, (size_t)len),
                           RD_KAFKA_V_VALUE(value, size),
                           RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_END) ==
                       RD_KAFKA_RESP_ERR__QUEUE_FULL)
                        rd_kafka_poll(rk, 10);
                if (n % 1000 == 0)
                        rd_kafka_poll(rk, 0);
        }
        if (rd_kafka_flush(rk, 120000) || failed)
                die("load", "records were not acknowledged");
        rd_kafka_destroy(rk);
        free(value);
        return 0;
}

static rd_kafka_t *reader(int argc, char **args) {
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", args[0]);
        set(conf, "group.id", "bare-loop");
        set(conf, "enable.auto.commit", "false");
        for (int n = 4; n < argc; n++) {
                char *equals = strchr(args[n], '=');
                if (!equals)
                        die(args[n], "not KEY=VALUE");
                *equals = 0;
                set(conf, args[n], equals + 1);
        }
        return client(RD_KAFKA_CONSUMER, conf);
}

static int read_all(int argc, char **args) {
        const char *topic = args[1];
        int partitions    = atoi(args[2]);
        long count        = atol(args[3]);
        rd_kafka_t *rk    = reader(argc, args);
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

        static rd_kafka_message_t *batch[BATCH];
        double started = 0, cpu_started = 0;
        long seen = 0, first = 0, bytes = 0;
        while (seen < count) {
                /* Without records, poll with a timeout of 100 ms, until the first one arrives. */
                ssize_t taken = rd_kafka_consume_batch_queue(queue, 0, batch, BATCH);
                if (taken <= 0) {
                        taken = rd_kafka_consume_batch_queue(queue, 100, batch, 1);
                        if (taken <= 0) {
                                rd_kafka_poll(rk, 0);
                                continue;
                        }
                }
                for (ssize_t n = 0; n < taken; n++) {
                        if (!batch[n]->err) {
                                seen++;
                                bytes += (long)batch[n]->len;
                        }
                        rd_kafka_message_destroy(batch[n]);
                }
                if (!started) {
                        started     = wall();
                        cpu_started = cpu();
                        first       = seen;
                }
        }
        printf("{\"records\": %ld, \"bytes\": %ld, \"seconds\": %.6f, "
               "\"cpu_seconds\": %.6f, \"peak_kib\": %ld}\n",
               seen - first, bytes, wall() - started, cpu() - cpu_started,
               peak_kib());
        fflush(stdout);
        /* Nothing is committed, so the process can exit without cleanup. */
        _Exit(0);
}

int main(int argc, char **argv) {
        if ((argc == 7 || argc == 8) && !strcmp(argv[1], "load"))
                return load(argv + 2);
        if (argc >= 6 && !strcmp(argv[1], "read"))
                return read_all(argc - 2, argv + 2);
        die("usage", "load BOOTSTRAP TOPIC COUNT VALUE_BYTES KEYS [REGIONS] | "
                     "read BOOTSTRAP TOPIC PARTITIONS COUNT [KEY=VALUE]...");
        return 2;
}
