import java.io.InputStream;
import java.net.*;
import java.net.http.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

/**
 * Java's own clients: HttpURLConnection, and HttpClient, which asks for h2c in the first request of every connection in plain. Java dials IPv4
 * by IPv6 sockets, as `::ffff:a.b.c.d`. Arguments: an address, and how many seconds an answer may take.
 */
public class Peer {
    static final byte[] BODY = new byte[300_000];
    static String base;
    static Duration soon;

    static void check(boolean isTrue, Object seen) {
        if (!isTrue) throw new AssertionError(String.valueOf(seen));
    }

    static void byUrlConnection() throws Exception {
        for (String path : List.of("/", "/", "/echo", "/echo-chunked")) {
            var connection = (HttpURLConnection) new URL(base + path).openConnection(Proxy.NO_PROXY);
            connection.setReadTimeout((int) soon.toMillis());
            if (path.startsWith("/echo")) {
                connection.setDoOutput(true);
                connection.setChunkedStreamingMode(7_000);
                connection.getOutputStream().write(BODY);
            }
            byte[] answer = connection.getInputStream().readAllBytes();
            check(Arrays.equals(answer, path.equals("/") ? "web".getBytes() : BODY), path);
        }
        var missing = (HttpURLConnection) new URL(base + "/none/such").openConnection(Proxy.NO_PROXY);
        check(missing.getResponseCode() == 404, missing.getResponseCode());
    }

    static void byHttpClient(HttpClient.Version version) throws Exception {
        var client = HttpClient.newBuilder().version(version).connectTimeout(soon).build();
        var plain = HttpRequest.newBuilder(URI.create(base + "/")).timeout(soon).build();
        for (int i = 0; i < 3; i++) {
            check(client.send(plain, HttpResponse.BodyHandlers.ofString()).body().equals("web"), version);
        }
        for (String path : List.of("/echo", "/echo-chunked")) {
            var known = HttpRequest.BodyPublishers.ofByteArray(BODY);
            var unknown = HttpRequest.BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(BODY));
            for (var body : List.of(known, unknown)) {
                var post = HttpRequest.newBuilder(URI.create(base + path)).timeout(soon).POST(body).build();
                check(Arrays.equals(client.send(post, HttpResponse.BodyHandlers.ofByteArray()).body(), BODY), path);
            }
        }
        var many = IntStream.range(0, 100).mapToObj(i -> client.sendAsync(plain, HttpResponse.BodyHandlers.ofString()));
        many.toList().forEach(answer -> check(answer.join().body().equals("web"), version));
    }

    public static void main(String[] arguments) throws Exception {
        base = "http://" + arguments[0];
        soon = Duration.ofSeconds(Long.parseLong(arguments[1]));
        new Random(1).nextBytes(BODY);
        byUrlConnection();
        byHttpClient(HttpClient.Version.HTTP_1_1);
        byHttpClient(HttpClient.Version.HTTP_2);
        System.out.println("done");
    }
}
