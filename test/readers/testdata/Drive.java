import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URL;
import javax.net.ssl.HttpsURLConnection;

/** Makes a request for each line of standard input, and tells how it went. */
final class Drive {
	public static void main(String[] args) throws Exception {
		BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
		while (lines.readLine() != null) {
			try {
				HttpsURLConnection c = (HttpsURLConnection) new URL("https://orders.internal/").openConnection();
				c.setSSLSocketFactory(Published.context().getSocketFactory());
				System.out.println("ok " + new String(c.getInputStream().readAllBytes()));
			} catch (Exception e) {
				System.out.println("failed " + e);
			}
		}
	}
}
