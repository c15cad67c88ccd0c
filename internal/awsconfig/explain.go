package awsconfig

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Explain returns what a call of the SDK failed with: the error code of the service's answer, and its clock to a
// second, as far as the service has answered, which the metadata service's answer about credentials is not, and an
// error without the request IDs and retry counts that the SDK's own text repeats.
func Explain(err error) (code string, date time.Time, plain error) {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if answer, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && answer.Response != nil {
			date, _ = http.ParseTime(answer.Response.Header.Get("Date"))
		}
		// Some messages are sentences, to which callers append advice.
		message := strings.TrimSuffix(api.ErrorMessage(), ".")
		return api.ErrorCode(), date, fmt.Errorf("%s: %s", api.ErrorCode(), message)
	}
	return "", date, err
}
