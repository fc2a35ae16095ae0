/* bare-loop load BOOTSTRAP TOPIC COUNT VALUE_BYTES KEYS SPREAD [REGIONS]
 *
 * SPREAD says how often each key occurs: `even`, `zipf` (exponent 1: the n-th key has 1/n of the first one's records) or
 * `hot` (every record has the same key). The records have a header `region` of so many values, or none. */
#include "bare_loop.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long failed;

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *message,
                      void *opaque) {
        (void)rk;
        (void)opaque;
        if (message->err)
                failed++;
}

struct spread {
        unsigned long keys;
        /* For `zipf`, the share of the records whose key is this one or an earlier one. */
        double *shares;
};

static struct spread spread_of(const char *name, unsigned long keys) {
        struct spread spread = {keys, NULL};
        if (!strcmp(name, "hot")) {
                spread.keys = 1;
        } else if (!strcmp(name, "zipf")) {
                spread.shares = malloc(keys * sizeof *spread.shares);
                double sum    = 0;
                for (unsigned long n = 0; n < keys; n++)
                        spread.shares[n] = sum += 1.0 / (double)(n + 1);
                for (unsigned long n = 0; n < keys; n++)
                        spread.shares[n] /= sum;
        } else if (strcmp(name, "even")) {
                die(name, "not even, zipf or hot");
        }
        return spread;
}

static unsigned long key_of(const struct spread *spread, uint64_t drawn) {
        if (!spread->shares)
                return drawn % spread->keys;
        double share      = (double)(drawn >> 11) / 9007199254740992.0;
        unsigned long low = 0, high = spread->keys - 1;
        while (low < high) {
                unsigned long middle = (low + high) / 2;
                if (spread->shares[middle] <= share)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

static rd_kafka_headers_t *headers_of(long n, unsigned long regions) {
        if (!regions)
                return NULL;
        char region[32];
        int len = snprintf(region, sizeof region, "r%lu",
                           (unsigned long)n % regions);
        rd_kafka_headers_t *headers = rd_kafka_headers_new(1);
        rd_kafka_header_add(headers, "region", -1, region, len);
        return headers;
}

static rd_kafka_t *loader(const char *bootstrap) {
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", bootstrap);
        set(conf, "linger.ms", "20");
        set(conf, "batch.num.messages", "10000");
        set(conf, "queue.buffering.max.messages", "1000000");
        set(conf, "partitioner", "murmur2_random");
        rd_kafka_conf_set_dr_msg_cb(conf, delivered);
        return client(RD_KAFKA_PRODUCER, conf);
}

int load(int argc, char **args) {
        if (argc != 6 && argc != 7)
                die("usage", "load BOOTSTRAP TOPIC COUNT VALUE_BYTES KEYS SPREAD [REGIONS]");
        long count            = atol(args[2]);
        size_t size           = (size_t)atol(args[3]);
        struct spread spread  = spread_of(args[5], strtoul(args[4], NULL, 10));
        unsigned long regions = argc == 7 ? strtoul(args[6], NULL, 10) : 0;
        rd_kafka_t *rk        = loader(args[0]);
        char *value           = malloc(size);
        memset(value, 'x', size);
        uint64_t state = 88172645463325252ull;
        for (long n = 0; n < count; n++) {
                char key[32];
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                int len = snprintf(key, sizeof key, "key-%08lu",
                                   key_of(&spread, state));
                rd_kafka_headers_t *headers = headers_of(n, regions);
                while (rd_kafka_producev(
                           rk, RD_KAFKA_V_TOPIC(args[1]),
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
        free(spread.shares);
        return 0;
}
